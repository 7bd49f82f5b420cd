/* Dirties memory at settings.rate in the chosen pattern.
 *
 * It works in slices of one millisecond; what could not be written in time (because the guest was throttled) is
 * given up beyond 50 ms, so that a stall is not followed by a burst that nobody asked for.
 */
#include "workload.h"

#include <time.h>

#define SLICE_NS 1000000ull
#define BACKLOG_NS (50 * SLICE_NS)

static uint64_t random64(void)
{
	static uint64_t state = 0x2545f4914f6cdd1dull;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static uint64_t next_page(void)
{
	static uint64_t cursor;
	uint64_t pages = oracle_pages(), hot = pages / 10 ? pages / 10 : 1;

	switch (settings.pattern) {
	case RANDOM:
		return random64() % pages;
	case HOTSPOT: /* nine writes in ten go to the first tenth */
		return random64() % 10 ? random64() % hot : random64() % pages;
	default:
		return cursor++ % pages;
	}
}

static void write_one(void)
{
	oracle_lock();
	oracle_write(next_page());
	oracle_unlock();
}

void *writer_main(void *unused)
{
	(void)unused;
	uint64_t last = now_ns();
	double owed = 0;

	for (;;) {
		struct timespec slice = {0, SLICE_NS};
		nanosleep(&slice, NULL);
		uint64_t now = now_ns(), elapsed = now - last;
		double pages_per_ns = settings.rate * 256 / NS_PER_S;

		last = now;
		owed += elapsed * pages_per_ns;
		if (owed > BACKLOG_NS * pages_per_ns + 1)
			owed = BACKLOG_NS * pages_per_ns + 1;
		for (; owed >= 1; owed -= 1)
			write_one();
	}
	return NULL;
}
