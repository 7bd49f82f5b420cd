/* Waits: for the host's lines, for signals, for the slot's clock and for faults; and keeps the host's lease. */
#define _GNU_SOURCE
#include "throttle.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BEGUN_WITHIN_NS (1000 * NS_PER_MS)
/* A port's first line may come before the kernel has heard that its host is there. */
#define DOUBT_NS (100 * NS_PER_MS)
/* Looking for new processes and mappings takes at most a twentieth of the time. */
#define SCAN_SHARE 20

static int faults_epoll, outer_epoll, clock_fd, signals_fd;
static pid_t command;
static int command_status;
static bool ticked, begun_owed;
static uint64_t lease_until, begun_until, next_scan, doubt_until;

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void add(int set, int fd, uint32_t events, void *tag)
{
	struct epoll_event event = {.events = events, .data.ptr = tag};

	epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
}

void loop_watch(struct process *p) { add(faults_epoll, p->uffd, EPOLLIN, p); }

void loop_clock(unsigned slot_ms)
{
	struct timespec slot = {slot_ms / 1000, slot_ms % 1000 * NS_PER_MS};
	struct itimerspec when = {slot, slot};

	timerfd_settime(clock_fd, 0, &when, NULL);
}

static void tick(void)
{
	uint64_t expired;

	if (read(clock_fd, &expired, sizeof expired) < 0)
		return;
	figures.slots += expired;
	for (struct process *p = herd; p; p = p->next)
		if (p->state == COVERED)
			guard_slot(p);
	ticked = true;
}

/* Serves faults and the slot's clock; one event at a time, since serving one may end the process of another. */
void pump(int timeout_ms)
{
	struct epoll_event event;

	for (int turns = 0; turns < 64 && epoll_wait(faults_epoll, &event, 1, turns ? 0 : timeout_ms) == 1; turns++) {
		struct process *p = event.data.ptr;
		if (!p)
			tick();
		else
			guard_faults(p);
	}
}

static void say(const char *word, const char *id)
{
	char line[512];

	protocol_figures(line, sizeof line, word, id, &figures);
	channel_say(line);
}

static void say_error(const char *why)
{
	char line[256];

	snprintf(line, sizeof line, "1 error %s\n", why);
	channel_say(line);
}

static void begin(const struct order *asked)
{
	if (running && strcmp(order.id, asked->id)) {
		say_error("busy another order is in force");
		return;
	}
	bool again = running;
	order = *asked;
	lease_until = now_ns() + order.lease_ms * NS_PER_MS;
	begun_until = now_ns() + BEGUN_WITHIN_NS;
	begun_owed = true;
	if (again)
		loop_clock(order.slot_ms);
	else
		herd_begin();
}

static void stop(const char *word)
{
	herd_end();
	begun_owed = false;
	if (word)
		say(word, order.id);
}

static void on_line(char *line)
{
	struct order asked = {0};
	const char *why;
	enum verb verb = protocol_parse(line, &asked, &why);
	bool same = running && !strcmp(order.id, asked.id);

	herd_count();
	if (verb == VERB_BAD)
		say_error(why);
	else if (verb == VERB_BEGIN)
		begin(&asked);
	else if (verb == VERB_STATUS)
		say("status", running ? order.id : "-");
	else if (!same)
		say_error("unknown no order of this id is in force");
	else if (verb == VERB_KEEP) {
		lease_until = now_ns() + order.lease_ms * NS_PER_MS;
		say("kept", order.id);
	} else
		stop("ended");
}

void loop_exited(pid_t pid, int status)
{
	if (pid == command)
		command_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	for (struct process *p = herd; p; p = p->next)
		if (p->seized == pid) {
			p->seized = 0;
			p->state = DEAD;
		}
}

/* Returns false when nobody is left to look after. */
static bool reap(void)
{
	for (;;) {
		int status;
		pid_t pid = waitpid(-1, &status, WNOHANG | __WALL);
		if (pid <= 0)
			return pid == 0 || errno != ECHILD;
		if (WIFSTOPPED(status))
			herd_stopped(pid, status);
		else
			loop_exited(pid, status);
	}
}

/* What the terminal sends, it sends to the command too; what a service manager sends is passed on. SIGPIPE is our own. */
static bool on_signals(void)
{
	struct signalfd_siginfo info;

	while (read(signals_fd, &info, sizeof info) == sizeof info)
		if (info.ssi_signo != SIGCHLD && info.ssi_signo != SIGPIPE && info.ssi_code <= 0)
			kill(command, info.ssi_signo);
	return reap();
}

/* Who is not there but has just spoken has either gone already or not been announced yet: a second look tells. */
static void on_channel(void)
{
	bool heard, there = channel_read(on_line, &heard);

	if (there)
		doubt_until = 0;
	else if (heard)
		doubt_until = now_ns() + DOUBT_NS;
	else if (running && now_ns() >= doubt_until)
		stop(NULL);
}

static void look_around(void)
{
	uint64_t started = now_ns();

	if (running && doubt_until && started >= doubt_until) {
		doubt_until = 0;
		on_channel();
	}
	if (!running || !ticked || started < next_scan)
		return;
	ticked = false;
	if (started > lease_until) {
		stop("expired");
		return;
	}
	herd_scan();
	next_scan = now_ns() + (now_ns() - started) * SCAN_SHARE;
}

static void answer_begin(void)
{
	if (!begun_owed || (herd_pending() && now_ns() < begun_until))
		return;
	begun_owed = false;
	herd_count();
	say("begun", order.id);
}

static void find_channel(void)
{
	static int watched = -1;

	if (channel_find() && channel_fd != watched) /* edges: a port without a host says so once, not for ever */
		add(outer_epoll, channel_fd, EPOLLIN | EPOLLET, &channel_fd);
	watched = channel_fd;
}

/* Runs until the command and all that it left behind have ended; returns its exit status. */
int loop_run(pid_t pid)
{
	sigset_t all;

	command = pid;
	sigfillset(&all);
	faults_epoll = epoll_create1(EPOLL_CLOEXEC);
	outer_epoll = epoll_create1(EPOLL_CLOEXEC);
	clock_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	signals_fd = signalfd(-1, &all, SFD_NONBLOCK | SFD_CLOEXEC);
	add(faults_epoll, clock_fd, EPOLLIN, NULL);
	add(outer_epoll, faults_epoll, EPOLLIN, &faults_epoll);
	add(outer_epoll, signals_fd, EPOLLIN, &signals_fd);
	for (;;) {
		struct epoll_event event;
		find_channel();
		int n = epoll_wait(outer_epoll, &event, 1, channel_fd < 0 ? 1000 : -1);
		if (n == 1 && event.data.ptr == &faults_epoll)
			pump(0);
		if (n == 1 && event.data.ptr == &channel_fd)
			on_channel();
		if (n == 1 && event.data.ptr == &signals_fd && !on_signals())
			return command_status;
		look_around();
		answer_begin();
	}
}
