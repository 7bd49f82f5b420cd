/* Has a process create a userfaultfd for its own memory, without changing the program or a byte of its memory.
 *
 * The thread is stopped by ptrace; its registers and signal mask are kept; the kernel's own vdso page holds a `syscall`
 * instruction to run. It is left exactly as it was found: after the last injected call it is stopped once more where
 * the kernel decides about restarting an interrupted system call, so that it sleeps on as if nothing had been.
 *
 * PTRACE_SYSCALL and not single-stepping: a step's SIGTRAP would reset the program's own handler of that signal.
 *
 * Source: Linux 6.1 arch/x86/kernel/signal.c, kernel/ptrace.c; ptrace(2).
 */
#define _GNU_SOURCE
#include "throttle.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define UFFD_FLAGS (O_CLOEXEC | O_NONBLOCK)
#define LONG_MODE_CS 0x33
#define SIGTRAP_BIT (1ull << (SIGTRAP - 1))

struct patient {
	pid_t pid, tid;
	int pidfd;
	uint64_t syscall_at, mask;
	struct user_regs_struct regs;
	bool gone;
};

/* The thread's next stop; faults of others are served meanwhile, so that nobody waits for a thread that is slow. */
static bool next_stop(struct patient *p, int *status)
{
	for (unsigned turns = 0;; turns++) {
		pid_t got = waitpid(p->tid, status, WNOHANG | __WALL);
		if (got == p->tid && WIFSTOPPED(*status))
			return true;
		if (got) { /* it has ended, or is not ours any more */
			if (got == p->tid)
				loop_exited(p->tid, *status);
			p->gone = true;
			return false;
		}
		pump(turns < 100 ? 0 : 1);
	}
}

/* Runs to the next entry to, or exit from, a system call. */
static bool to_syscall_edge(struct patient *p)
{
	int status, signal = 0;

	for (;;) {
		if (ptrace(PTRACE_SYSCALL, p->tid, NULL, signal) || !next_stop(p, &status))
			return false;
		if (WSTOPSIG(status) == (SIGTRAP | 0x80))
			return true;
		/* SIGSTOP cannot be masked: it is passed on, all other stops are looked past */
		signal = status >> 16 ? 0 : WSTOPSIG(status);
	}
}

static long call(struct patient *p, long number, long a, long b, long c, long d)
{
	struct user_regs_struct regs = p->regs;

	regs.rip = p->syscall_at;
	regs.rax = number;
	regs.orig_rax = -1; /* whatever it was doing must not be restarted now */
	regs.rdi = a;
	regs.rsi = b;
	regs.rdx = c;
	regs.r10 = d;
	regs.r8 = -1;
	regs.r9 = 0;
	if (p->gone || ptrace(PTRACE_SETREGS, p->tid, NULL, &regs) || !to_syscall_edge(p) || !to_syscall_edge(p) ||
	    ptrace(PTRACE_GETREGS, p->tid, NULL, &regs))
		return -ESRCH;
	return regs.rax;
}

static bool find_syscall(struct patient *p)
{
	struct range vdso = {0};
	struct ranges ranges = {0};
	struct numbers tops = {0};
	unsigned char code[8192];

	anonymous_ranges(p->pid, &ranges, &tops, &vdso);
	free(ranges.at);
	free(tops.at);
	size_t size = vdso.end - vdso.start < sizeof code ? vdso.end - vdso.start : sizeof code;
	struct iovec here = {code, size}, there = {(void *)vdso.start, size};
	ssize_t n = size ? process_vm_readv(p->pid, &here, 1, &there, 1, 0) : 0;
	for (ssize_t i = 0; i + 1 < n; i++)
		if (code[i] == 0x0f && code[i + 1] == 0x05) {
			p->syscall_at = vdso.start + i;
			return true;
		}
	return false;
}

static int take_fd(struct patient *p, long fd)
{
	return syscall(SYS_pidfd_getfd, p->pidfd, fd, 0);
}

/* In the process's memory while it is handed the device: one page of its own, mapped and unmapped for that. */
struct scratch {
	struct msghdr message;
	struct iovec vector;
	char control[CMSG_SPACE(sizeof(int))];
	char byte;
	int pair[2];
};

static bool pass_fd(int socket, int fd)
{
	union { struct cmsghdr header; char space[CMSG_SPACE(sizeof(int))]; } control = {0};
	struct iovec byte = {"", 1};
	struct msghdr message = {
		.msg_iov = &byte, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control.space};

	control.header = (struct cmsghdr){CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS};
	memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
	return sendmsg(socket, &message, MSG_DONTWAIT) == 1;
}

static bool copy(struct patient *p, uint64_t at, void *data, size_t size, bool into)
{
	struct iovec here = {data, size}, there = {(void *)at, size};

	return (into ? process_vm_writev : process_vm_readv)(p->pid, &here, 1, &there, 1, 0) == (ssize_t)size;
}

static long receive_device(struct patient *p, uint64_t at, int pair[2], int device)
{
	struct scratch s = {0};
	int mine = take_fd(p, pair[0]), fd = -1;
	bool sent = mine >= 0 && pass_fd(mine, device);

	if (mine >= 0)
		close(mine);
	s.message.msg_iov = (void *)(at + offsetof(struct scratch, vector));
	s.message.msg_iovlen = 1;
	s.message.msg_control = (void *)(at + offsetof(struct scratch, control));
	s.message.msg_controllen = sizeof s.control;
	s.vector = (struct iovec){(void *)(at + offsetof(struct scratch, byte)), 1};
	if (!sent || !copy(p, at, &s, sizeof s, true) ||
	    call(p, SYS_recvmsg, pair[1], at, MSG_CMSG_CLOEXEC | MSG_DONTWAIT, 0) != 1 ||
	    !copy(p, at, &s, sizeof s, false))
		return -EIO;
	memcpy(&fd, s.control + CMSG_LEN(0), sizeof fd);
	return fd;
}

/* An unprivileged process may not ask for a userfaultfd that covers the kernel's accesses, but may use
 * /dev/userfaultfd (Linux 6.1) once somebody hands it over. */
static long by_device(struct patient *p)
{
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), pair[2] = {-1, -1};
	long uffd = -EPERM;

	if (device < 0)
		return uffd;
	long at = call(p, SYS_mmap, 0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	if (at > 0) {
		long where = at + offsetof(struct scratch, pair);
		if (!call(p, SYS_socketpair, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, where) &&
		    copy(p, where, pair, sizeof pair, false)) {
			long theirs = receive_device(p, at, pair, device);
			if (theirs >= 0) {
				uffd = call(p, SYS_ioctl, theirs, USERFAULTFD_IOC_NEW, UFFD_FLAGS, 0);
				call(p, SYS_close, theirs, 0, 0, 0);
			}
			call(p, SYS_close, pair[0], 0, 0, 0);
			call(p, SYS_close, pair[1], 0, 0, 0);
		}
		call(p, SYS_munmap, at, PAGE, 0, 0);
	}
	close(device);
	return uffd;
}

static int make_uffd(struct patient *p, const char **why)
{
	long theirs = call(p, SYS_userfaultfd, UFFD_FLAGS, 0, 0, 0);

	if (theirs == -EPERM)
		theirs = by_device(p);
	if (theirs < 0) {
		*why = theirs == -ENOSYS ? "kernel" : "permission";
		return -1;
	}
	int uffd = take_fd(p, theirs);
	call(p, SYS_close, theirs, 0, 0, 0);
	*why = "permission";
	return uffd;
}

/* Registers first, mask next, then once more into the kernel's stop before user mode; there it is let go. */
static void put_back(struct patient *p)
{
	int status;

	if (p->gone)
		return;
	ptrace(PTRACE_SETREGS, p->tid, NULL, &p->regs);
	ptrace(PTRACE_SETSIGMASK, p->tid, sizeof p->mask, &p->mask);
	if (ptrace(PTRACE_INTERRUPT, p->tid, NULL, NULL) || ptrace(PTRACE_CONT, p->tid, NULL, NULL))
		return;
	if (next_stop(p, &status))
		ptrace(PTRACE_DETACH, p->tid, NULL, status >> 16 ? 0 : WSTOPSIG(status));
}

/* A copy of the descriptor that a child got by a fork in between would keep memory protected when we are dead:
 * then this one is given up, unused, and it is tried again. */
static bool forked_since(pid_t pid, const struct numbers *before)
{
	struct numbers after = {0};
	bool more = false;

	children_of(pid, &after);
	for (size_t i = 0; i < after.count; i++)
		more = more || !has_number(before, after.at[i]);
	free(after.at);
	return more;
}

/* The thread is in a ptrace stop; on return it runs free. -1: `why` tells; "again" means that it is worth another try. */
int inject_userfaultfd(pid_t pid, pid_t tid, const char **why)
{
	struct patient p = {.pid = pid, .tid = tid, .pidfd = syscall(SYS_pidfd_open, pid, 0)};
	uint64_t all = ~SIGTRAP_BIT;
	struct numbers before = {0};
	int uffd = -1;

	*why = "again";
	children_of(pid, &before);
	if (p.pidfd < 0 || ptrace(PTRACE_GETREGS, tid, NULL, &p.regs) ||
	    ptrace(PTRACE_GETSIGMASK, tid, sizeof p.mask, &p.mask)) {
		ptrace(PTRACE_DETACH, tid, NULL, 0);
	} else if (p.regs.cs != LONG_MODE_CS || !find_syscall(&p)) {
		*why = "32-bit";
		ptrace(PTRACE_DETACH, tid, NULL, 0);
	} else {
		ptrace(PTRACE_SETSIGMASK, tid, sizeof all, &all);
		uffd = make_uffd(&p, why);
		put_back(&p);
	}
	if (uffd >= 0 && forked_since(pid, &before)) {
		close(uffd);
		uffd = -1;
		*why = "again";
	}
	if (p.gone)
		*why = "again";
	if (p.pidfd >= 0)
		close(p.pidfd);
	free(before.at);
	return uffd;
}
