/* The slot's budget: a write costs a fault, and this says when it is answered.
 *
 * Source: Linux 6.1 Documentation/admin-guide/mm/userfaultfd.rst, fs/userfaultfd.c; "stunning rogue processes" in
 * Clark et al., Live Migration of Virtual Machines, NSDI 2005.
 */
#include "throttle.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static char zeros[PAGE] __attribute__((aligned(4096)));

static void wake(struct process *p, uint64_t page)
{
	struct uffdio_range range = {page, PAGE};

	ioctl(p->uffd, UFFDIO_WAKE, &range);
}

/* Whatever comes of it, the thread is woken: a page that could not be mended faults again, or the program gets what
 * it would have got without us. */
static void let_go(struct process *p, const struct fault *f)
{
	uint64_t held = now_ns() - f->arrived_ns;
	int error = 0;

	if (f->missing) {
		struct uffdio_copy fresh = {.dst = f->page, .src = (uintptr_t)zeros, .len = PAGE};
		if (ioctl(p->uffd, UFFDIO_COPY, &fresh))
			error = errno;
	} else
		error = protect(p, f->page, f->page + PAGE, false);
	if (error) {
		wake(p, f->page);
		figures.errors += error != EEXIST && error != ENOENT && error != ESRCH && error != EAGAIN;
		if (error == ESRCH)
			p->state = DEAD;
	}
	if (held > figures.longest_hold_ns)
		figures.longest_hold_ns = held;
}

static void spend(struct process *p, const struct fault *f)
{
	if (!has_number(&p->written, f->page)) {
		add_number(&p->written, f->page);
		p->used++;
	}
	let_go(p, f);
}

static bool hold(struct process *p, const struct fault *f)
{
	if (p->holding == p->held_room) {
		size_t room = p->held_room ? p->held_room * 2 : 64;
		struct fault *held = realloc(p->held, room * sizeof *held);
		if (!held)
			return false;
		p->held = held;
		p->held_room = room;
	}
	p->held[p->holding++] = *f;
	figures.holds++;
	return true;
}

/* A read of memory that was never written maps the kernel's page of zeros: nothing gets dirty, nothing is counted.
 * That page is protected at once, or the write that may follow would go unseen. */
static void map_zeros(struct process *p, uint64_t page)
{
	struct uffdio_zeropage zero = {.range = {page, PAGE}, .mode = UFFDIO_ZEROPAGE_MODE_DONTWAKE};

	if (!ioctl(p->uffd, UFFDIO_ZEROPAGE, &zero) && !has_number(&p->exempt, page))
		protect(p, page, page + PAGE, true);
	wake(p, page);
}

static void on_fault(struct process *p, uint64_t address, uint64_t flags)
{
	struct fault f = {address & -PAGE, now_ns(), !(flags & UFFD_PAGEFAULT_FLAG_WP)};

	if (f.missing && !(flags & UFFD_PAGEFAULT_FLAG_WRITE)) {
		map_zeros(p, f.page);
		return;
	}
	figures.faults++;
	if (p->used < order.writes || has_number(&p->written, f.page) || !hold(p, &f))
		spend(p, &f);
}

void guard_faults(struct process *p)
{
	struct uffd_msg messages[16];
	ssize_t n = read(p->uffd, messages, sizeof messages);

	for (ssize_t i = 0; i < n / (ssize_t)sizeof *messages; i++)
		if (messages[i].event == UFFD_EVENT_PAGEFAULT)
			on_fault(p, messages[i].arg.pagefault.address, messages[i].arg.pagefault.flags);
}

static int by_address(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Pages of the past slot, neighbours in one go. A mapping that is gone costs its neighbours nothing. */
static void protect_written(struct process *p)
{
	struct numbers *w = &p->written;

	qsort(w->at, w->count, sizeof *w->at, by_address);
	for (size_t i = 0, next; i < w->count; i = next) {
		for (next = i + 1; next < w->count && w->at[next] == w->at[next - 1] + PAGE; next++)
			;
		uint64_t start = w->at[i], end = w->at[next - 1] + PAGE;
		if (protect_some(p, start, end) == ENOENT)
			for (; start < end; start += PAGE)
				protect(p, start, start + PAGE, true);
	}
	w->count = 0;
}

/* A new slot: what was written is protected again, then those who wait are served, the oldest first. Who would wait
 * for longer than promised by the next slot is let go on top of the budget. */
void guard_slot(struct process *p)
{
	uint64_t now = now_ns(), limit = (order.max_stall_ms - order.slot_ms) * NS_PER_MS;
	size_t served = 0;

	protect_written(p);
	p->used = 0;
	for (; served < p->holding; served++) {
		if (p->used >= order.writes) {
			if (now - p->held[served].arrived_ns < limit)
				break;
			figures.overruns++;
		}
		spend(p, &p->held[served]);
	}
	p->holding -= served;
	memmove(p->held, p->held + served, p->holding * sizeof *p->held);
}
