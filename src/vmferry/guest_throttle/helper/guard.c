/* One process under protection: which of its memory, and which pages must be left out.
 *
 * Source: Linux 6.1 Documentation/admin-guide/mm/userfaultfd.rst, fs/userfaultfd.c, kernel/fork.c (mm_release).
 */
#define _GNU_SOURCE
#include "throttle.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Protecting is done in steps of 16 MiB, with faults served in between. */
#define STEP (16ull << 20)
/* A mapping that looks as before may be another one at the same place: up to this size it is protected afresh. */
#define CHEAP (4ull << 20)

bool guard_open(struct process *p)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};

	if (ioctl(p->uffd, UFFDIO_API, &api))
		return false;
	loop_watch(p);
	return true;
}

int protect(struct process *p, uint64_t start, uint64_t end, bool on)
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

static void protect_around(struct process *p, uint64_t start, uint64_t end)
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

/* All of a range but the pages left out. Returns the kernel's error, 0 for none. */
int protect_some(struct process *p, uint64_t start, uint64_t end)
{
	if (!touches_exempt(p, start, end))
		return protect(p, start, end, true);
	protect_around(p, start, end);
	return 0;
}

static void protect_range(struct process *p, struct range r)
{
	for (uint64_t at = r.start; at < r.end && p->state == COVERED; at += STEP) {
		uint64_t end = at + STEP < r.end ? at + STEP : r.end;
		protect_some(p, at, end);
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
