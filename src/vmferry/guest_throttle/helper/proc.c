/* What /proc says about the processes: who there is, and which memory is private, writable and anonymous. */
#include "throttle.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void add_number(struct numbers *numbers, uint64_t number)
{
	if (numbers->count == numbers->room) {
		size_t room = numbers->room ? numbers->room * 2 : 64;
		uint64_t *at = realloc(numbers->at, room * sizeof *at);
		if (!at)
			return; /* the caller then sees less: a page too few is protected */
		numbers->at = at;
		numbers->room = room;
	}
	numbers->at[numbers->count++] = number;
}

bool has_number(const struct numbers *numbers, uint64_t number)
{
	for (size_t i = 0; i < numbers->count; i++)
		if (numbers->at[i] == number)
			return true;
	return false;
}

void threads_of(pid_t pid, struct numbers *tids)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/task", pid);
	DIR *folder = opendir(path);

	if (!folder)
		return;
	for (struct dirent *entry; (entry = readdir(folder));)
		if (entry->d_name[0] != '.')
			add_number(tids, strtoul(entry->d_name, NULL, 10));
	closedir(folder);
}

bool children_of(pid_t pid, struct numbers *pids)
{
	struct numbers tids = {0};
	bool any = false;

	threads_of(pid, &tids);
	for (size_t i = 0; i < tids.count; i++) {
		char path[96];
		snprintf(path, sizeof path, "/proc/%d/task/%lu/children", pid, tids.at[i]);
		FILE *file = fopen(path, "re");
		if (!file)
			continue;
		for (unsigned long child; fscanf(file, "%lu", &child) == 1; any = true)
			add_number(pids, child);
		fclose(file);
	}
	free(tids.at);
	return any;
}

/* All descendants; orphans among them are ours, since we are their subreaper. */
void tree_of(pid_t root, struct numbers *pids)
{
	children_of(root, pids);
	for (size_t i = 0; i < pids->count; i++)
		children_of(pids->at[i], pids);
}

static void add_range(struct ranges *ranges, uint64_t start, uint64_t end)
{
	if (ranges->count == ranges->room) {
		size_t room = ranges->room ? ranges->room * 2 : 64;
		struct range *at = realloc(ranges->at, room * sizeof *at);
		if (!at)
			return;
		ranges->at = at;
		ranges->room = room;
	}
	ranges->at[ranges->count++] = (struct range){start, end};
}

/* Private anonymous memory has no inode; what stands in brackets is memory too, or the kernel's own. */
static bool is_anonymous(const char *perms, unsigned long inode, const char *name)
{
	return perms[1] == 'w' && perms[3] == 'p' && !inode &&
	       (!*name || !strcmp(name, "[heap]") || !strncmp(name, "[stack", 6) || !strncmp(name, "[anon:", 6));
}

/* `stack_tops` gets the last page of what lies above a guard: libc keeps a thread's own record there, and the kernel
 * writes a zero into it when the thread ends, at a moment when it takes no page fault for an answer. */
bool anonymous_ranges(pid_t pid, struct ranges *ranges, struct numbers *stack_tops, struct range *vdso)
{
	char path[64], line[512];
	uint64_t guard_end = 0;

	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	FILE *file = fopen(path, "re");
	if (!file)
		return false;
	while (fgets(line, sizeof line, file)) {
		unsigned long start, end, inode;
		char perms[5], name[32] = "";
		if (!strchr(line, '\n')) /* a path that is too long: not ours, but its rest must not be read as a line */
			for (int c; (c = fgetc(file)) != EOF && c != '\n';)
				;
		if (sscanf(line, "%lx-%lx %4s %*s %*s %lu %31s", &start, &end, perms, &inode, name) < 4)
			continue;
		if (!strcmp(name, "[vdso]"))
			*vdso = (struct range){start, end};
		if (is_anonymous(perms, inode, name)) {
			add_range(ranges, start, end);
			if (start == guard_end)
				add_number(stack_tops, end - PAGE);
		}
		if (!strncmp(perms, "---p", 4))
			guard_end = end;
	}
	fclose(file);
	return true;
}

/* A number that changes when the size of the address space or of its writable part does. */
uint64_t sizes_of(pid_t pid)
{
	char path[64];
	unsigned long size = 0, data = 0;

	snprintf(path, sizeof path, "/proc/%d/statm", pid);
	FILE *file = fopen(path, "re");
	if (file) {
		if (fscanf(file, "%lu %*u %*u %*u %*u %lu", &size, &data) != 2)
			size = data = 0;
		fclose(file);
	}
	return size << 32 ^ data;
}

/* A number of /proc/PID/status, -1 when there is none. */
long status_field(pid_t pid, const char *key)
{
	char path[64], line[256];
	long value = -1;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	FILE *file = fopen(path, "re");
	if (!file)
		return -1;
	while (value < 0 && fgets(line, sizeof line, file))
		if (!strncmp(line, key, strlen(key)) && line[strlen(key)] == ':')
			value = strtol(line + strlen(key) + 1, NULL, 10);
	fclose(file);
	return value;
}
