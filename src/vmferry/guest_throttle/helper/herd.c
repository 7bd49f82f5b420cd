/* All processes of the command: who there is, who is under protection, who cannot be and why. */
#define _GNU_SOURCE
#include "throttle.h"

#include <errno.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define RETRY_SCANS 32

struct process *herd;
struct order order;
struct figures figures;
bool running;

static void skip(struct process *p, const char *why)
{
	if (p->state != SKIPPED && why != p->why)
		fprintf(stderr, "vmferry-throttle: process %d is not throttled: %s\n", p->pid, why);
	p->state = SKIPPED;
	p->why = why;
	p->looks = 0;
}

static struct process *known(pid_t pid)
{
	for (struct process *p = herd; p; p = p->next)
		if (p->pid == pid)
			return p;
	return NULL;
}

static struct process *new_process(pid_t pid)
{
	struct process *p = calloc(1, sizeof *p);

	if (!p)
		return NULL;
	*p = (struct process){.pid = pid, .uffd = -1, .next = herd};
	return herd = p;
}

/* A child between vfork and exec runs in its parent's memory, and that is protected already. */
static bool borrows_memory(pid_t pid)
{
	long parent = status_field(pid, "PPid");

	return parent > 0 && !syscall(SYS_kcmp, pid, (pid_t)parent, KCMP_VM, 0, 0);
}

static void seize(struct process *p)
{
	if (!sizes_of(p->pid) || borrows_memory(p->pid)) /* it has ended; a guest in other memory */
		return;
	if (status_field(p->pid, "Seccomp") > 0) { /* its filter might kill it for the calls that we need */
		skip(p, "it has a seccomp filter");
		return;
	}
	p->seized = p->pid;
	if (ptrace(PTRACE_SEIZE, p->seized, NULL, PTRACE_O_TRACESYSGOOD)) {
		p->seized = 0;
		if (errno == EPERM && status_field(p->pid, "TracerPid") > 0)
			skip(p, "another program traces it");
		else if (errno == EPERM)
			skip(p, "ptrace is not allowed on it");
		return;
	}
	p->state = SEIZED;
	ptrace(PTRACE_INTERRUPT, p->seized, NULL, NULL);
}

static void take_under_protection(struct process *p)
{
	const char *why;

	p->uffd = inject_userfaultfd(p->pid, p->seized, &why);
	p->seized = 0;
	p->state = NEW;
	p->again = p->uffd < 0 && why[0] == 'a'; /* "again" */
	if (p->uffd < 0) {
		if (!p->again)
			skip(p, why[0] == '3' ? "it is a 32-bit program"
			     : why[0] == 'k' ? "the kernel has no userfaultfd"
					     : "it may not use userfaultfd, and there is no /dev/userfaultfd");
		return;
	}
	if (!guard_open(p)) {
		guard_close(p);
		skip(p, "the kernel cannot write-protect by userfaultfd");
		return;
	}
	p->state = COVERED;
	guard_look(p);
}

/* A thread has stopped for ptrace. Who was stopped by a signal of the program's own writes nothing: left alone. */
void herd_stopped(pid_t tid, int status)
{
	struct process *p = herd;
	int signal = WSTOPSIG(status);

	while (p && p->seized != tid)
		p = p->next;
	if (status >> 16 == PTRACE_EVENT_STOP && signal == SIGTRAP && p && running) {
		take_under_protection(p);
	} else if (status >> 16 || !p || !running) {
		ptrace(PTRACE_DETACH, tid, NULL, status >> 16 ? 0 : signal);
		if (p) {
			p->seized = 0;
			p->state = NEW;
		}
	} else
		ptrace(PTRACE_CONT, tid, NULL, signal);
}

unsigned herd_pending(void)
{
	unsigned pending = 0;

	for (struct process *p = herd; p; p = p->next)
		pending += p->state == SEIZED || p->again;
	return pending;
}

static void forget_missing(void)
{
	for (struct process **at = &herd; *at;) {
		struct process *p = *at;
		if (p->found) {
			at = &p->next;
			continue;
		}
		*at = p->next;
		guard_close(p);
		free(p);
	}
}

static void look_after(struct process *p)
{
	if (p->state == DEAD) { /* an exec: other memory, same process */
		guard_close(p);
		p->state = NEW;
	}
	if (p->state == SKIPPED && ++p->looks % RETRY_SCANS == 0)
		p->state = NEW;
	if (p->state == NEW)
		seize(p);
	else if (p->state == COVERED)
		guard_look(p);
}

void herd_scan(void)
{
	struct numbers pids = {0};

	for (struct process *p = herd; p; p = p->next)
		p->found = false;
	tree_of(getpid(), &pids);
	for (size_t i = 0; i < pids.count; i++) {
		struct process *p = known(pids.at[i]);
		if (p || (p = new_process(pids.at[i])))
			p->found = true;
	}
	free(pids.at);
	forget_missing();
	for (struct process *p = herd; p; p = p->next)
		look_after(p);
}

/* Before everybody else, or those who are held would wait for us; but below real-time programs that may have less time. */
static void hurry(bool on)
{
	struct sched_param param = {.sched_priority = on ? 1 : 0};

	sched_setscheduler(0, (on ? SCHED_FIFO : SCHED_OTHER) | SCHED_RESET_ON_FORK, &param);
	if (!on)
		munlockall();
	else if (!geteuid()) /* others have a limit, and past it would get no memory at all */
		mlockall(MCL_CURRENT | MCL_FUTURE);
}

void herd_begin(void)
{
	figures = (struct figures){0};
	running = true;
	hurry(true);
	loop_clock(order.slot_ms);
	herd_scan();
}

/* Everybody runs free when this returns; a thread that has not stopped yet is let go when it does. */
void herd_end(void)
{
	herd_count();
	for (struct process *p = herd; p; p = p->next) {
		guard_close(p);
		if (p->state != SEIZED)
			p->state = NEW;
	}
	running = false;
	loop_clock(0);
	hurry(false);
}

void herd_count(void)
{
	figures.processes = figures.uncovered = figures.covered_bytes = 0;
	for (struct process *p = herd; p; p = p->next) {
		figures.processes += p->state == COVERED;
		figures.uncovered += p->state == SKIPPED;
		figures.covered_bytes += p->state == COVERED ? p->covered_bytes : 0;
	}
}
