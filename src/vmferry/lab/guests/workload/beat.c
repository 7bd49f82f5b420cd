/* The beat: one byte on I/O port 0xe9 (isa-debugcon) every beat_us for an outside clock; the in-guest stall meter.
 *
 * The guest's own clock stands still while the guest is paused, so this meter sees throttling and post-copy
 * faults only; the pause itself is seen by whoever stamps the beats outside. The byte is the low byte of the
 * beat's sequence number. It leaves in the vCPU's own context and needs nobody to take it: a missing reader never
 * blocks the guest, and QEMU's main loop adds nothing to the stamp.
 *
 * The kernel writes it, where it has /dev/port (Debian's cloud kernel has none): an `out` of a program's own (ioperm)
 * is a general protection fault in guests of an emulated KVM. QEMU 10.0's TCG takes the I/O bitmap of a task segment
 * that is busy, as KVM loads it, for none (target/i386/tcg/seg_helper.c, check_io).
 */
#include "workload.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/io.h>
#include <time.h>
#include <unistd.h>

#define DEBUGCON 0xe9

static _Atomic uint64_t sent, longest_stall_ns;

uint64_t beats_sent(void) { return sent; }
uint64_t beat_longest_stall_ns(void) { return longest_stall_ns; }
void beat_reset_stalls(void) { longest_stall_ns = 0; }

static void meter(uint64_t now)
{
	static uint64_t last;

	if (last && now - last > longest_stall_ns)
		longest_stall_ns = now - last;
	last = now;
}

static void sleep_until(uint64_t ns)
{
	struct timespec at = {ns / NS_PER_S, ns % NS_PER_S};

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
}

static void beat(int ports, unsigned char byte)
{
	if (ports < 0)
		outb(byte, DEBUGCON);
	else if (pwrite(ports, &byte, 1, DEBUGCON) != 1)
		perror("workload: I/O port 0xe9");
}

void *beat_main(void *unused)
{
	(void)unused;
	uint64_t period = settings.beat_us * 1000, due = now_ns();

	int ports = open("/dev/port", O_WRONLY | O_CLOEXEC);

	if (ports < 0 && ioperm(DEBUGCON, 1, 1)) {
		perror("workload: no beat: I/O port 0xe9");
		return NULL;
	}
	for (;;) {
		due += period;
		sleep_until(due);
		uint64_t now = now_ns();
		meter(now);
		if (now > due + period) /* late: go on from here, do not catch up in a burst */
			due = now;
		beat(ports, sent++);
	}
	return NULL;
}
