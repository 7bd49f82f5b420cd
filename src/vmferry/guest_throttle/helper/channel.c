/* The channel to the host: a virtio-serial port found by its name, or any descriptor that was handed over. */
#define _GNU_SOURCE
#include "throttle.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define CLASS "/sys/class/virtio-ports"
#define NAME "org.vmferry.throttle.0"

int channel_fd = -1;

void channel_use(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	channel_fd = fd;
}

static bool is_ours(const char *entry)
{
	char path[320], name[64] = "";
	snprintf(path, sizeof path, CLASS "/%s/name", entry);
	FILE *file = fopen(path, "re");

	if (!file)
		return false;
	bool ok = fgets(name, sizeof name, file);
	fclose(file);
	name[strcspn(name, "\n")] = 0;
	return ok && !strcmp(name, NAME);
}

/* Returns whether there is a channel now: the port's driver may be loaded, and the port plugged in, later than us. */
bool channel_find(void)
{
	DIR *class = channel_fd < 0 ? opendir(CLASS) : NULL;

	if (!class)
		return channel_fd >= 0;
	for (struct dirent *entry; channel_fd < 0 && (entry = readdir(class));) {
		char path[320];
		if (entry->d_name[0] == '.' || !is_ours(entry->d_name))
			continue;
		snprintf(path, sizeof path, "/dev/%s", entry->d_name);
		channel_fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	}
	closedir(class);
	return channel_fd >= 0;
}

static char text[LINE_MAX_BYTES + 1];
static size_t used;
static bool too_long;

static void take(char c, void (*handle)(char *line))
{
	if (c != '\n') {
		if (used == LINE_MAX_BYTES)
			too_long = true;
		else
			text[used++] = c;
		return;
	}
	text[used] = 0;
	bool clean = !too_long && strlen(text) == used; /* no zero byte inside */
	used = 0;
	too_long = false;
	if (clean)
		handle(text);
	else
		channel_say("1 error line a line has at most 255 bytes of text\n");
}

/* Hands over each whole line, and says whether anything came. Returns false when nobody is at the other end. */
bool channel_read(void (*handle)(char *line), bool *heard)
{
	char bytes[512];

	for (*heard = false;; *heard = true) {
		ssize_t n = read(channel_fd, bytes, sizeof bytes);
		while (n < 0 && errno == EINTR)
			n = read(channel_fd, bytes, sizeof bytes);
		if (n < 0 && errno == EAGAIN)
			return true;
		if (n <= 0) {
			used = *heard ? used : 0;
			too_long = *heard && too_long;
			if (n < 0 && errno != EPIPE) { /* unplugged */
				close(channel_fd);
				channel_fd = -1;
			}
			return false;
		}
		for (ssize_t i = 0; i < n; i++)
			take(bytes[i], handle);
	}
}

/* A host that does not read loses the answer: nothing here ever waits for it. */
void channel_say(const char *line)
{
	if (channel_fd >= 0 && write(channel_fd, line, strlen(line)) < 0)
		return;
}
