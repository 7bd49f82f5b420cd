/* Finds virtio-serial ports by name, without udev. */
#include "workload.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

#define CLASS "/sys/class/virtio-ports"

static bool read_file(const char *path, char *text, size_t size)
{
	FILE *file = fopen(path, "re");
	bool ok = file && fgets(text, size, file);

	if (file)
		fclose(file);
	if (ok)
		text[strcspn(text, "\n")] = 0;
	return ok;
}

static int open_if_named(const char *entry, const char *name)
{
	char path[512], text[128];

	snprintf(path, sizeof path, CLASS "/%s/name", entry);
	if (!read_file(path, text, sizeof text) || strcmp(text, name))
		return -1;
	snprintf(path, sizeof path, "/dev/%s", entry);
	return open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
}

static int port_open(const char *name)
{
	DIR *class = opendir(CLASS);
	int fd = -1;

	if (!class)
		return -1;
	for (struct dirent *entry; fd < 0 && (entry = readdir(class));)
		if (entry->d_name[0] != '.')
			fd = open_if_named(entry->d_name, name);
	closedir(class);
	return fd;
}

/* Opens the port without blocking on it, waiting until it exists: it may be hot-plugged. */
int port_open_wait(const char *name)
{
	struct timespec pause = {0, 20000000};
	int fd;

	while ((fd = port_open(name)) < 0)
		nanosleep(&pause, NULL);
	return fd;
}
