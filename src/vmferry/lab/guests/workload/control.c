/* The control channel: one command per line in, one line out, on virtio-serial port org.vmferry.control. */
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

static int reply_oracle(char *line, size_t size)
{
	oracle_lock();
	struct verdict v = oracle_check();
	oracle_unlock();
	if (!v.bad)
		return snprintf(line, size, "oracle clean pages=%lu writes=%lu\n", v.pages, v.writes);
	return snprintf(line, size,
			"oracle DIRTY first=%lu kind=%s bad=%lu expected_generation=%lu found_generation=%lu"
			" pages=%lu writes=%lu\n",
			v.first, v.kind, v.bad, v.expected_generation, v.found_generation, v.pages, v.writes);
}

static int reply_disk(char *line, size_t size)
{
	struct disk_verdict v = disk_check();
	const char *verdict = v.bad || v.failed ? "DIRTY" : "clean";

	return snprintf(line, size, "disk %s chunks=%lu writes=%lu failed=%lu bad=%lu first=%lu\n", verdict, v.chunks,
			v.writes, v.failed, v.bad, v.first);
}

static int reply_rate(char *line, size_t size, const char *argument)
{
	char *end;
	double rate = strtod(argument, &end);

	if (end == argument || *end || rate < 0)
		return snprintf(line, size, "error rate needs MiB/s, for example: rate 20\n");
	settings.rate = rate;
	return snprintf(line, size, "rate %g\n", rate);
}

static int reply_corrupt(char *line, size_t size, const char *how)
{
	oracle_lock();
	bool known = oracle_corrupt(how);
	oracle_unlock();
	return known ? snprintf(line, size, "corrupted %s\n", how)
		     : snprintf(line, size, "error corrupt needs flip, stale, lost, misplaced, table or past\n");
}

/* Under systemd file systems are unmounted first; the linux guest has none. */
static void shut_down(int how, const char *verb)
{
	if (access("/run/systemd/system", F_OK))
		reboot(how);
	else
		execl("/bin/systemctl", "systemctl", verb, (char *)NULL);
}

static void panic_now(void)
{
	int fd = open("/proc/sysrq-trigger", O_WRONLY);

	if (fd < 0 || write(fd, "c", 1) != 1)
		abort(); /* this process is not needed any more either */
}

static int answer(char *command, char *line, size_t size)
{
	char *argument = command + strcspn(command, " ");

	if (*argument)
		*argument++ = 0;
	if (!strcmp(command, "status"))
		return status_line(line, size);
	if (!strcmp(command, "oracle"))
		return reply_oracle(line, size);
	if (!strcmp(command, "disk"))
		return reply_disk(line, size);
	if (!strcmp(command, "stalls"))
		return snprintf(line, size, "stalls max_us=%lu since_reset\n", beat_longest_stall_ns() / 1000);
	if (!strcmp(command, "reset")) {
		beat_reset_stalls();
		return snprintf(line, size, "reset\n");
	}
	if (!strcmp(command, "rate"))
		return reply_rate(line, size, argument);
	if (!strcmp(command, "corrupt"))
		return reply_corrupt(line, size, argument);
	if (!strcmp(command, "poweroff"))
		shut_down(RB_POWER_OFF, "poweroff");
	if (!strcmp(command, "reboot"))
		shut_down(RB_AUTOBOOT, "reboot");
	if (!strcmp(command, "panic"))
		panic_now();
	return snprintf(line, size, "error unknown command, known: status oracle disk stalls reset rate corrupt"
				    " poweroff reboot panic\n");
}

static void pause_ms(long ms)
{
	struct timespec pause = {0, ms * 1000000};

	nanosleep(&pause, NULL);
}

/* Writes a whole reply, or gives up when nobody listens for a second. */
static void send_line(int fd, const char *line, int length)
{
	for (int tries = 0; length > 0 && tries < 200;) {
		ssize_t n = write(fd, line, length);
		if (n > 0) {
			line += n;
			length -= n;
		} else {
			tries++;
			pause_ms(5);
		}
	}
}

static void handle(int fd, char *command)
{
	char line[512];

	if (*command)
		send_line(fd, line, answer(command, line, sizeof line));
}

/* A host that connects is greeted with the status line; POLLHUP says that no host is there. */
void *control_main(void *unused)
{
	(void)unused;
	int fd = port_open_wait("org.vmferry.control");
	char text[256], line[512];
	size_t used = 0;
	bool greeted = false;

	for (;;) {
		struct pollfd ready = {.fd = fd, .events = greeted ? POLLIN : POLLIN | POLLOUT};
		poll(&ready, 1, -1);
		if (ready.revents & POLLHUP) {
			greeted = false;
			used = 0;
			pause_ms(20);
			continue;
		}
		if (!greeted) {
			send_line(fd, line, status_line(line, sizeof line));
			greeted = true;
		}
		if (used == sizeof text - 1)
			used = 0; /* a line too long is no command */
		ssize_t n = read(fd, text + used, sizeof text - 1 - used);
		if (n <= 0) {
			pause_ms(5);
			continue;
		}
		used += n;
		text[used] = 0;
		for (char *end; (end = strchr(text, '\n'));) {
			*end = 0;
			if (end > text && end[-1] == '\r')
				end[-1] = 0;
			handle(fd, text);
			used -= end + 1 - text;
			memmove(text, end + 1, used + 1);
		}
	}
	return NULL;
}
