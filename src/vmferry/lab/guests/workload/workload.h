/* The workload of the built-in guests: what its parts promise each other.
 *
 * One process. By falling priority: beat (outside clock and stall meter), echo (UDP), control (line protocol),
 * writer (dirties memory), disk (writes to a disk, if asked to). The beat must never wait for any of the others.
 */
#ifndef VMFERRY_WORKLOAD_H
#define VMFERRY_WORKLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE 4096u
#define NS_PER_S 1000000000ull

enum pattern { SEQUENTIAL, RANDOM, HOTSPOT };

/* From the kernel command line or a file (main.c); rate is the only value that changes later. */
struct settings {
	uint64_t mb;            /* working set, MiB */
	double rate;            /* MiB/s, read and written under the oracle's lock */
	enum pattern pattern;
	bool compressible;      /* one word in four is random instead of every word */
	uint64_t seed;
	uint64_t beat_us;
	double disk_rate;       /* MiB/s to /dev/vda; 0: no disk is opened */
};
extern struct settings settings;

/* What a sweep over all pages found. kind is NULL when everything is exactly as last written. */
struct verdict {
	uint64_t pages, writes, bad, first;
	const char *kind;
	uint64_t expected_generation, found_generation;
};

/* oracle.c */
void oracle_init(void);
void oracle_write(uint64_t page);
struct verdict oracle_check(void);
bool oracle_corrupt(const char *how);
uint64_t oracle_pages(void);
void oracle_lock(void);
void oracle_unlock(void);
uint64_t oracle_writes(void);

/* What reading back everything that was written to the disk found. */
struct disk_verdict {
	uint64_t chunks, writes, failed, bad, first;
};

/* disk.c */
struct disk_verdict disk_check(void);

/* writer.c, disk.c, beat.c, echo.c, control.c: thread bodies, none of them returns */
void *writer_main(void *unused);
void *disk_main(void *unused);
void *beat_main(void *unused);
void *echo_main(void *unused);
void *control_main(void *unused);

/* beat.c */
uint64_t beats_sent(void);
uint64_t beat_longest_stall_ns(void);
void beat_reset_stalls(void);

/* ports.c */
int port_open_wait(const char *name);

/* main.c */
uint64_t now_ns(void);
int status_line(char *line, size_t size);

#endif
