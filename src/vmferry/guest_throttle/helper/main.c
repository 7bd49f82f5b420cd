/* vmferry-throttle [--channel-fd N] -- COMMAND...: starts a command whose writes the host may slow down. */
#define _GNU_SOURCE
#include "throttle.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static int usage(void)
{
	fprintf(stderr, "usage: vmferry-throttle [--channel-fd N] -- COMMAND [ARGUMENT...]\n"
			"Starts COMMAND; while the host says so over virtio-serial port org.vmferry.throttle.0,\n"
			"its processes may write so many pages per slot. Protocol version 1.\n");
	return 2;
}

static pid_t start(char **command, const sigset_t *mask)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	sigprocmask(SIG_SETMASK, mask, NULL);
	execvp(*command, command);
	fprintf(stderr, "vmferry-throttle: cannot start %s: %s\n", *command, strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

/* Memory that we protect must not cost us our life. The command was started before this and is not meant. */
static void spare_from_oom(void)
{
	FILE *file = fopen("/proc/self/oom_score_adj", "we");

	if (file) {
		fputs("-1000", file);
		fclose(file);
	}
}

int main(int argc, char **argv)
{
	sigset_t all, before;
	int at = 1;

	if (argc > 3 && !strcmp(argv[1], "--channel-fd")) {
		channel_use(atoi(argv[2]));
		at = 3;
	}
	if (at + 1 >= argc || strcmp(argv[at], "--"))
		return usage();
	if (sysconf(_SC_PAGESIZE) != (long)PAGE)
		fprintf(stderr, "vmferry-throttle: this machine's pages are not 4 KiB: nothing will be throttled\n");
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	pid_t pid = start(argv + at + 1, &before);
	if (pid < 0) {
		perror("vmferry-throttle: fork");
		return 126;
	}
	spare_from_oom();
	return loop_run(pid);
}
