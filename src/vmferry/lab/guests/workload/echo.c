/* UDP echo on port 7007: every datagram goes back unchanged to where it came from. */
#include "workload.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>

#define ECHO_PORT 7007

void *echo_main(void *unused)
{
	(void)unused;
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(ECHO_PORT)}, peer;
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	char datagram[2048];

	if (fd < 0 || bind(fd, (struct sockaddr *)&here, sizeof here) < 0) {
		perror("workload: echo port 7007");
		return NULL;
	}
	for (;;) {
		socklen_t length = sizeof peer;
		ssize_t n = recvfrom(fd, datagram, sizeof datagram, 0, (struct sockaddr *)&peer, &length);
		if (n >= 0)
			sendto(fd, datagram, n, MSG_DONTWAIT, (struct sockaddr *)&peer, length);
	}
	return NULL;
}
