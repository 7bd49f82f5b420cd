/* Writes to the first disk at settings.disk_rate, and knows what must stand there.
 *
 * The generation of each chunk is kept in memory: what a move loses of the disk, or of the order of writes to it, shows
 * when the chunks are read back.
 */
#define _GNU_SOURCE
#include "workload.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <linux/fs.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (64 * 1024)
#define WORDS (CHUNK / 8)
#define BACKLOG_S 0.05

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static uint32_t *generations;
static uint64_t chunks, writes, failed;
static uint64_t *buffer;
static int fd = -1;

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdull;
	return x ^ (x >> 29);
}

/* Chunk and generation say each word: a chunk that is misplaced, old or torn is not what is expected. */
static uint64_t word_of(uint64_t chunk, uint32_t generation, uint64_t index)
{
	return mix((chunk << 32 | generation) + settings.seed) + index * 0x9e3779b97f4a7c15ull;
}

static bool write_chunk(uint64_t chunk)
{
	uint32_t generation = generations[chunk] + 1;

	for (uint64_t i = 0; i < WORDS; i++)
		buffer[i] = word_of(chunk, generation, i);
	if (pwrite(fd, buffer, CHUNK, chunk * CHUNK) != CHUNK)
		return false;
	generations[chunk] = generation;
	writes++;
	return true;
}

static bool is_as_written(uint64_t chunk)
{
	if (pread(fd, buffer, CHUNK, chunk * CHUNK) != CHUNK)
		return false;
	for (uint64_t i = 0; i < WORDS; i++)
		if (buffer[i] != word_of(chunk, generations[chunk], i))
			return false;
	return true;
}

struct disk_verdict disk_check(void)
{
	struct disk_verdict v = {0};

	pthread_mutex_lock(&mutex);
	v.writes = writes;
	v.failed = failed;
	for (uint64_t chunk = 0; chunk < chunks; chunk++) {
		if (!generations[chunk])
			continue;
		v.chunks++;
		if (!is_as_written(chunk) && !v.bad++)
			v.first = chunk;
	}
	pthread_mutex_unlock(&mutex);
	return v;
}

/* Its driver comes late, or never. */
static void open_wait(void)
{
	struct timespec pause = {0, 20 * 1000000};
	uint64_t size = 0;

	while ((fd = open("/dev/vda", O_RDWR | O_DIRECT)) < 0)
		nanosleep(&pause, NULL);
	if (ioctl(fd, BLKGETSIZE64, &size) || posix_memalign((void **)&buffer, 4096, CHUNK))
		exit(1);
	generations = calloc(size / CHUNK, sizeof *generations);
	if (!generations)
		exit(1);
	chunks = size / CHUNK;
}

void *disk_main(void *unused)
{
	(void)unused;
	double owed = 0;
	uint64_t cursor = 0;

	pthread_mutex_lock(&mutex);
	open_wait();
	pthread_mutex_unlock(&mutex);
	for (uint64_t last = now_ns();;) {
		struct timespec slice = {0, 2 * 1000000};
		nanosleep(&slice, NULL);
		uint64_t now = now_ns();
		double per_s = settings.disk_rate * 16;

		owed += (now - last) * per_s / NS_PER_S;
		last = now;
		if (owed > BACKLOG_S * per_s + 1)
			owed = BACKLOG_S * per_s + 1;
		for (; owed >= 1 && chunks; owed -= 1) {
			pthread_mutex_lock(&mutex);
			if (!write_chunk(cursor))
				failed++;
			pthread_mutex_unlock(&mutex);
			cursor = (cursor + 1) % chunks;
		}
	}
	return NULL;
}
