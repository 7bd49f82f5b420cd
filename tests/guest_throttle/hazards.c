/* A program full of what a careless throttle would break: hazards SECONDS. Exit status 0 says that nothing was.
 *
 * Threads that end (the kernel writes into their memory when it takes no fault for an answer), forks, system calls
 * that signals interrupt, sleeps that must be restarted, memory that moves, buffers that the kernel fills.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static _Atomic long joins, quiet_joins, forks, moves, reads, pauses, sleeps;

static void check(int good, const char *what)
{
	if (!good) {
		fprintf(stderr, "hazards: %s went wrong, errno %d\n", what, errno);
		_exit(1);
	}
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void *short_life(void *argument)
{
	char frame[20000];

	memset(frame, (int)(long)argument, sizeof frame);
	return (void *)(long)((volatile char *)frame)[100];
}

static void *ending_threads(void *unused)
{
	for (;; joins++) {
		pthread_t thread;
		void *result;
		check(!pthread_create(&thread, NULL, short_life, (void *)7), "pthread_create");
		check(!pthread_join(thread, &result) && (long)result == 7, "pthread_join");
	}
	return unused;
}

/* Sleeps and ends without writing anything: when the kernel zeroes the thread's id, that page has long been protected
 * again. (Run with glibc.pthread.rseq=0, or the kernel writes there at each wake-up.) */
static void *quiet_end(void *unused)
{
	static const struct timespec nap = {0, 50000000};

	__asm__ volatile("syscall" : : "a"(SYS_nanosleep), "D"(&nap), "S"(0) : "rcx", "r11", "memory");
	__asm__ volatile("syscall" : : "a"(SYS_exit), "D"(0) : "rcx", "r11", "memory");
	return unused;
}

static void *quietly_ending_threads(void *unused)
{
	for (;; quiet_joins++) {
		pthread_t thread;
		check(!pthread_create(&thread, NULL, quiet_end, NULL), "pthread_create");
		check(!pthread_join(thread, NULL), "pthread_join");
	}
	return unused;
}

static int all_are(const char *memory, size_t size, char value)
{
	for (size_t i = 0; i < size; i++)
		if (memory[i] != value)
			return 0;
	return 1;
}

static void *forking(void *unused)
{
	enum { SIZE = 100000 };

	for (;; forks++) {
		char *memory = malloc(SIZE);
		int status;
		memset(memory, 3, SIZE);
		pid_t child = fork();
		if (!child) {
			int same = all_are(memory, SIZE, 3);
			memset(memory, 4, SIZE);
			_exit(same ? 5 : 6);
		}
		check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 5, "fork");
		check(all_are(memory, SIZE, 3), "memory after a fork");
		free(memory);
	}
	return unused;
}

static void *moving_memory(void *unused)
{
	for (unsigned key = 1;; key++, moves++) {
		size_t size = 1000;
		unsigned char *memory = malloc(size);
		for (size_t i = 0; i < size; i++)
			memory[i] = i * key;
		for (int doublings = 0; doublings < 12; doublings++, size *= 2) {
			memory = realloc(memory, size * 2);
			check(memory != NULL, "realloc");
			for (size_t i = size; i < size * 2; i++)
				memory[i] = i * key;
		}
		for (size_t i = 0; i < size; i++)
			check(memory[i] == (unsigned char)(i * key), "memory after realloc");
		free(memory);
	}
	return unused;
}

static void *kernel_fills(void *unused)
{
	enum { SIZE = 300000 };
	int zero = open("/dev/zero", O_RDONLY);

	for (;; reads++) {
		char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		for (size_t at = 0; at < SIZE;) {
			ssize_t n = read(zero, memory + at, SIZE - at);
			check(n > 0, "read");
			at += n;
		}
		munmap(memory, SIZE);
	}
	return unused;
}

static void *sleeping(void *unused)
{
	for (;; sleeps++) {
		struct timespec nap = {0, 30000000};
		uint64_t began = now_ns();
		check(!nanosleep(&nap, NULL), "nanosleep");
		check(now_ns() - began >= 30000000, "nanosleep's length");
	}
	return unused;
}

static void on_alarm(int unused) { (void)unused; }

static void start(void *(*body)(void *))
{
	pthread_t thread;

	check(!pthread_create(&thread, NULL, body, NULL), "pthread_create");
}

static void alarm_every(long ns)
{
	struct sigaction action = {.sa_handler = on_alarm};
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
	struct itimerspec when = {{0, ns}, {0, ns}};
	timer_t timer;

	sigaction(SIGALRM, &action, NULL);
	check(!timer_create(CLOCK_MONOTONIC, &event, &timer) && !timer_settime(timer, 0, &when, NULL), "timer");
}

int main(int argc, char **argv)
{
	uint64_t end = now_ns() + (argc > 1 ? atoi(argv[1]) : 1) * 1000000000ull;
	sigset_t alarm, before;

	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &alarm, &before); /* the threads leave the alarms to this one */
	start(ending_threads);
	start(quietly_ending_threads);
	start(forking);
	start(moving_memory);
	start(kernel_fills);
	start(sleeping);
	alarm_every(7000000);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	for (long joined = -1, quiet = -1, at = 0; now_ns() < end; pauses++) {
		check(pause() == -1 && errno == EINTR, "pause");
		if (++at % 140 == 0) { /* once a second */
			check(joins > joined && quiet_joins > quiet, "a thread's end");
			joined = joins;
			quiet = quiet_joins;
		}
	}
	printf("joins=%ld quiet_joins=%ld forks=%ld moves=%ld reads=%ld pauses=%ld sleeps=%ld\n", joins,
	       quiet_joins, forks, moves, reads, pauses, sleeps);
	return !(joins && forks && moves && reads && pauses && sleeps);
}
