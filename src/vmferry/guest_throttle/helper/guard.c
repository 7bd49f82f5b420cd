/* One process under protection: what it writes costs a fault, and the slot's budget says when that is answered.
 *
 * Source: Linux 6.1 Documentation/admin-guide/mm/userfaultfd.rst, fs/userfaultfd.c; "stunning rogue processes" in
 * Clark et al., Live Migration of Virtual Machines, NSDI 2005.
 */
#define _GNU_SOURCE
#include "throttle.h"

#include <errno.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Protecting is done in steps of 16 MiB, with faults served in between. */
#define STEP (16ull << 20)
/* A mapping that looks as before may be another one at the same place: up to this size it is protected afresh. */
#define CHEAP (4ull << 20)

static char zeros[PAGE] __attribute__((aligned(4096)));

bool guard_open(struct process *p)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};

	if (ioctl(p->uffd, UFFDIO_API, &api))
		return false;
	loop_watch(p);
	return true;
}

static int protect(struct process *p, uint64_t start, uint64_t end, bool on)
{
	struct uffdio_writeprotect wp = {{start, end - start}, on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
	int tries = 0;

	while (ioctl(p->uffd, UFFDIO_WRITEPROTECT, &wp)) {
		if (errno == EAGAIN && tries++ < 1000)
			continue;
		if (errno == ESRCH)
			p->state = DEAD;
		return errno;
	}
	return 0;
}

static void protect_step(struct process *p, uint64_t start, uint64_t end)
{
	uint64_t from = start;

	for (uint64_t page = start; page < end; page += PAGE)
		if (has_number(&p->exempt, page)) {
			if (page > from)
				protect(p, from, page, true);
			from = page + PAGE;
		}
	if (end > from)
		protect(p, from, end, true);
}

static bool touches_exempt(const struct process *p, uint64_t start, uint64_t end)
{
	for (size_t i = 0; i < p->exempt.count; i++)
		if (p->exempt.at[i] >= start && p->exempt.at[i] < end)
			return true;
	return false;
}

static void protect_range(struct process *p, struct range r)
{
	for (uint64_t at = r.start; at < r.end && p->state == COVERED; at += STEP) {
		uint64_t end = at + STEP < r.end ? at + STEP : r.end;
		if (touches_exempt(p, at, end))
			protect_step(p, at, end);
		else
			protect(p, at, end, true);
		pump(0);
	}
}

static void exempt_page(struct process *p, uint64_t page)
{
	if (has_number(&p->exempt, page))
		return;
	add_number(&p->exempt, page);
	protect(p, page, page + PAGE, false);
}

/* libc keeps a thread's id, which the kernel zeroes when the thread ends, a few bytes from the list of robust locks,
 * and that list's place the kernel tells. */
static void exempt_threads(struct process *p)
{
	struct numbers tids = {0};

	threads_of(p->pid, &tids);
	for (size_t i = 0; i < tids.count; i++) {
		void *head = NULL;
		size_t size;
		if (syscall(SYS_get_robust_list, (int)tids.at[i], &head, &size) || !head)
			continue;
		exempt_page(p, ((uint64_t)head - 256) & -PAGE);
		exempt_page(p, ((uint64_t)head + 256) & -PAGE);
	}
	free(tids.at);
}

static bool is_known(const struct process *p, struct range r)
{
	for (size_t i = 0; i < p->covered.count; i++)
		if (p->covered.at[i].start == r.start && p->covered.at[i].end == r.end)
			return true;
	return false;
}

static bool enlist(struct process *p, struct range r)
{
	struct uffdio_register reg = {
		.range = {r.start, r.end - r.start},
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP};

	return !ioctl(p->uffd, UFFDIO_REGISTER, &reg) && reg.ioctls & 1ull << _UFFDIO_WRITEPROTECT;
}

static void cover(struct process *p, struct ranges *now)
{
	p->covered_bytes = 0;
	for (size_t i = 0; i < now->count && p->state == COVERED; i++) {
		struct range r = now->at[i];
		if (!enlist(p, r)) { /* gone again, or the program's own userfaultfd holds it */
			now->at[i].end = r.start;
			continue;
		}
		p->covered_bytes += r.end - r.start;
		if (!is_known(p, r) || r.end - r.start <= CHEAP)
			protect_range(p, r);
	}
}

/* An exec has replaced the memory that the descriptor belongs to; the address need not exist for the answer. */
static bool memory_is_gone(struct process *p)
{
	struct uffdio_writeprotect probe = {{1ull << 20, PAGE}, UFFDIO_WRITEPROTECT_MODE_DONTWAKE};

	return ioctl(p->uffd, UFFDIO_WRITEPROTECT, &probe) && errno == ESRCH;
}

/* Takes up threads and mappings that are new since the last look; every eighth look does not trust the sizes. */
void guard_look(struct process *p)
{
	struct ranges now = {0};
	struct numbers tops = {0};
	struct range vdso;
	uint64_t sizes = sizes_of(p->pid);

	if (memory_is_gone(p)) {
		p->state = DEAD;
		return;
	}
	exempt_threads(p);
	if (sizes == p->sizes && p->looks++ % 8)
		return;
	p->sizes = sizes;
	if (!anonymous_ranges(p->pid, &now, &tops, &vdso))
		return;
	for (size_t i = 0; i < tops.count; i++)
		exempt_page(p, tops.at[i]);
	free(tops.at);
	cover(p, &now);
	free(p->covered.at);
	p->covered = now;
}

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
		if (touches_exempt(p, start, end))
			protect_step(p, start, end);
		else if (protect(p, start, end, true) == ENOENT)
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

/* Closing is what sets free, here as when we die; taking the ranges off the list first is for the case that somebody
 * else holds a copy of the descriptor. */
void guard_close(struct process *p)
{
	for (size_t i = 0; i < p->covered.count && p->uffd >= 0; i++) {
		struct uffdio_range range = {p->covered.at[i].start, p->covered.at[i].end - p->covered.at[i].start};
		if (range.len)
			ioctl(p->uffd, UFFDIO_UNREGISTER, &range);
	}
	if (p->uffd >= 0)
		close(p->uffd);
	p->uffd = -1;
	free(p->covered.at);
	free(p->exempt.at);
	free(p->written.at);
	free(p->held);
	p->covered = (struct ranges){0};
	p->exempt = p->written = (struct numbers){0};
	p->held = NULL;
	p->holding = p->held_room = p->used = 0;
	p->sizes = p->looks = 0;
}
