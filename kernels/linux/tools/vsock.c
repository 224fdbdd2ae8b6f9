/*
 * vsock listen PORT [COUNT]: echoes what each of COUNT connections (default: no end of them) sends until it is closed.
 * vsock connect CID PORT: sends standard input, half-closes, and copies what comes back to standard output.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "tools.h"

static char buffer[65536];

static int write_all(int fd, const char *data, ssize_t length)
{
	while (length > 0) {
		ssize_t n = write(fd, data, length);

		if (n < 0)
			return -1;
		data += n;
		length -= n;
	}
	return 0;
}

static int fail(const char *what)
{
	fprintf(stderr, "vsock: %s: %s\n", what, strerror(errno));
	return 1;
}

static int serve(unsigned port, long connections)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_port = port, .svm_cid = VMADDR_CID_ANY };
	int listener = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (listener < 0)
		return fail("socket");
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)))
		return fail("bind");
	if (listen(listener, 16))
		return fail("listen");
	printf("vsock: listening on port %u\n", port);
	fflush(stdout);
	for (long i = 0; connections == 0 || i < connections; i++) {
		int peer = accept(listener, NULL, NULL);
		ssize_t n;

		if (peer < 0)
			return fail("accept");
		while ((n = read(peer, buffer, sizeof(buffer))) > 0)
			if (write_all(peer, buffer, n))
				break;
		/* A peer that goes away early is its own business: the next one is served. */
		close(peer);
	}
	return 0;
}

static int call(unsigned cid, unsigned port)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_port = port, .svm_cid = cid };
	int peer = socket(AF_VSOCK, SOCK_STREAM, 0);
	struct pollfd fds[2];

	if (peer < 0)
		return fail("socket");
	if (connect(peer, (struct sockaddr *)&address, sizeof(address)))
		return fail("connect");
	fds[0] = (struct pollfd){ .fd = peer, .events = POLLIN };
	fds[1] = (struct pollfd){ .fd = STDIN_FILENO, .events = POLLIN };
	for (;;) {
		if (poll(fds, 2, -1) < 0)
			return fail("poll");
		if (fds[0].revents) {
			ssize_t n = read(peer, buffer, sizeof(buffer));

			if (n < 0)
				return fail("read");
			if (n == 0)
				return 0;
			if (write_all(STDOUT_FILENO, buffer, n))
				return fail("standard output");
		}
		if (fds[1].revents) {
			/* Small pieces: while this write waits for the peer's credit, its answer is not being read. */
			ssize_t n = read(STDIN_FILENO, buffer, 4096);

			if (n < 0)
				return fail("standard input");
			if (n == 0) {
				shutdown(peer, SHUT_WR);
				fds[1].fd = -1;
			} else if (write_all(peer, buffer, n)) {
				return fail("write");
			}
		}
	}
}

int vsock_main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc >= 3 && !strcmp(argv[1], "listen"))
		return serve(strtoul(argv[2], NULL, 0), argc > 3 ? atol(argv[3]) : 0);
	if (argc == 4 && !strcmp(argv[1], "connect"))
		return call(strtoul(argv[2], NULL, 0), strtoul(argv[3], NULL, 0));
	fprintf(stderr, "usage: vsock listen PORT [COUNT] | vsock connect CID PORT\n");
	return 2;
}
