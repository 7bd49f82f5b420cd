/* Programs to be throttled: victim MODE FILE. The file is shared memory, which the throttle does not touch:
 * word 0 counts pages written, word 1 is the writer's pid, word 2 a stage that the test waits for.
 *
 *   write    writes one page after the other
 *   fork     at SIGUSR1 forks a child that does
 *   exec     at SIGUSR1 becomes "write", by exec
 *   grow     at SIGUSR1 maps fresh memory and does so there
 *   grow-heap the same, with the program's break
 *   filter   as "write", under a seccomp filter that allows everything
 *   system   lets the kernel write its memory: read(2) into one page after the other
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 2048

static volatile uint64_t *shared;

static char *memory_of(size_t bytes)
{
	char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		exit(9);
	return at;
}

/* Each page must hold what was written to it last: exit status 8 says that it does not. */
static void write_for_ever(uint64_t *memory)
{
	shared[1] = getpid();
	for (uint64_t n = 0;; n++) {
		uint64_t *page = memory + n % PAGES * (PAGE / 8);
		if (n >= PAGES && *page != n - PAGES)
			_exit(8);
		*page = n;
		shared[0]++;
	}
}

static void let_the_kernel_write(char *memory)
{
	int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);

	shared[1] = getpid();
	for (uint64_t n = 0;; n++) {
		if (read(zero, memory + n % PAGES * PAGE, 100) != 100)
			_exit(8);
		shared[0]++;
	}
}

static void filter_everything_through(void)
{
	struct sock_filter allow = {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW};
	struct sock_fprog program = {1, &allow};

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		_exit(7);
}

static void wait_for_signal(void)
{
	sigset_t set;
	int got;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	shared[1] = getpid();
	shared[2] = 1;
	sigwait(&set, &got);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 2 ? argv[1] : "";
	int fd = argc > 2 ? open(argv[2], O_RDWR) : -1;

	shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (shared == MAP_FAILED)
		return 9;
	if (!strcmp(mode, "filter"))
		filter_everything_through();
	else if (strcmp(mode, "write") && strcmp(mode, "system"))
		wait_for_signal();
	if (!strcmp(mode, "exec"))
		execl("/proc/self/exe", argv[0], "write", argv[2], NULL);
	if (!strcmp(mode, "fork") && fork())
		for (;;)
			pause();
	if (!strcmp(mode, "system"))
		let_the_kernel_write(memory_of(PAGES * PAGE));
	write_for_ever(strcmp(mode, "grow-heap") ? (uint64_t *)memory_of(PAGES * PAGE) : sbrk(PAGES * PAGE));
}
