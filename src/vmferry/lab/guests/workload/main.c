/* Reads the settings, starts the threads, says "ready" on the console. */
#define _GNU_SOURCE
#include "workload.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct settings settings = {.mb = 64, .rate = 0, .seed = 1, .beat_us = 1000};

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static const char *pattern_name(void)
{
	static const char *names[] = {"sequential", "random", "hotspot"};

	return names[settings.pattern];
}

int status_line(char *line, size_t size)
{
	return snprintf(line, size,
			"ready mb=%lu rate=%g pattern=%s data=%s writes=%lu beats=%lu uptime_ms=%lu\n",
			settings.mb, settings.rate, pattern_name(), settings.compressible ? "compressible" : "random",
			oracle_writes(), beats_sent(), now_ns() / 1000000);
}

static void set(const char *key, const char *value)
{
	if (!strcmp(key, "mb"))
		settings.mb = strtoull(value, NULL, 10);
	else if (!strcmp(key, "rate"))
		settings.rate = strtod(value, NULL);
	else if (!strcmp(key, "seed"))
		settings.seed = strtoull(value, NULL, 10);
	else if (!strcmp(key, "beat_us"))
		settings.beat_us = strtoull(value, NULL, 10);
	else if (!strcmp(key, "disk_rate"))
		settings.disk_rate = strtod(value, NULL);
	else if (!strcmp(key, "data"))
		settings.compressible = !strcmp(value, "compressible");
	else if (!strcmp(key, "pattern"))
		settings.pattern = *value == 'r' ? RANDOM : *value == 'h' ? HOTSPOT : SEQUENTIAL;
}

/* One line, of the kernel command line or of the file that the only argument names. */
static void read_settings(const char *path)
{
	char text[4096] = "", *rest = text;
	FILE *file = fopen(path, "re");

	if (file) {
		if (!fgets(text, sizeof text, file))
			*text = 0;
		fclose(file);
	}
	for (char *word; (word = strsep(&rest, " \n"));) {
		char *value = strchr(word, '=');
		if (value) {
			*value = 0;
			set(word, value + 1);
		}
	}
	if (!settings.mb)
		settings.mb = 1;
	if (settings.beat_us < 100)
		settings.beat_us = 100;
}

/* priority 0 is an ordinary thread, above it real time: a beat preempts everything else here. */
static void start(void *(*body)(void *), int priority)
{
	struct sched_param param = {.sched_priority = priority};
	pthread_attr_t attr;
	pthread_t thread;

	pthread_attr_init(&attr);
	pthread_attr_setinheritsched(&attr, PTHREAD_EXPLICIT_SCHED);
	pthread_attr_setschedpolicy(&attr, priority ? SCHED_FIFO : SCHED_OTHER);
	pthread_attr_setschedparam(&attr, &param);
	if (pthread_create(&thread, &attr, body, NULL)) {
		printf("workload: cannot start a thread\n");
		exit(1);
	}
}

int main(int argc, char **argv)
{
	char line[512];

	setvbuf(stdout, NULL, _IOLBF, 0);
	read_settings(argc > 1 ? argv[1] : "/proc/cmdline");
	start(echo_main, 30);
	start(beat_main, 50);
	oracle_init();
	mlockall(MCL_CURRENT);
	start(control_main, 0);
	start(writer_main, 0);
	if (settings.disk_rate > 0)
		start(disk_main, 0);
	status_line(line, sizeof line);
	printf("\nvmferry-guest %s", line);
	for (;;)
		pause();
}
