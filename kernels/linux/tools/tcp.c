/*
 * tcp PORT: what is at the other end of measurements over TCP, one connection after the other.
 *
 * The first byte of a connection says what it is for. 's': what comes is a stream, each word of which is compared; when it has
 * ended, the answer is "OK N", or "BAD N" for a wrong word, and a newline, where N is how many bytes were right. 'm' and eight
 * bytes with a number, least significant first: so many bytes of that stream are sent. 'r': whatever comes is sent back.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tools.h"

#define WORDS_PER_PAGE 512
#define WORDS 8192

static uint64_t words[WORDS];

/* The stream's word of this number. */
static uint64_t stream_word(uint64_t number)
{
	return pattern_word(number / WORDS_PER_PAGE, 0, number % WORDS_PER_PAGE);
}

/* Reads until the buffer is full or the stream has ended; the number of bytes, or -1. */
static ssize_t fill(int fd, void *buffer, size_t size)
{
	size_t length = 0;

	while (length < size) {
		ssize_t n = read(fd, (char *)buffer + length, size - length);

		if (n < 0)
			return -1;
		if (n == 0)
			break;
		length += n;
	}
	return length;
}

static int send_all(int fd, const void *buffer, size_t size)
{
	for (size_t sent = 0; sent < size;) {
		ssize_t n = write(fd, (const char *)buffer + sent, size - sent);

		if (n < 0)
			return -1;
		sent += n;
	}
	return 0;
}

static int take_stream(int fd)
{
	const char *verdict = "OK";
	uint64_t right = 0;
	char answer[64];
	ssize_t n;

	while ((n = fill(fd, words, sizeof(words))) > 0) {
		for (ssize_t i = 0; i < n / 8 && *verdict == 'O'; i++) {
			if (words[i] == stream_word(right / 8))
				right += 8;
			else
				verdict = "BAD";
		}
	}
	if (n < 0)
		return -1;
	return send_all(fd, answer, sprintf(answer, "%s %llu\n", verdict, (unsigned long long)right));
}

static int give_stream(int fd)
{
	uint64_t bytes, number = 0;

	if (fill(fd, &bytes, sizeof(bytes)) != sizeof(bytes))
		return -1;
	while (bytes) {
		size_t now = bytes < sizeof(words) ? bytes : sizeof(words);

		for (unsigned i = 0; i < WORDS; i++)
			words[i] = stream_word(number++);
		if (send_all(fd, words, now))
			return -1;
		bytes -= now;
	}
	return 0;
}

static int echo(int fd)
{
	ssize_t n;

	while ((n = read(fd, words, sizeof(words))) > 0)
		if (send_all(fd, words, n))
			return -1;
	return n;
}

int tcp_main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(argc == 2 ? atoi(argv[1]) : 0) };
	int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;

	signal(SIGPIPE, SIG_IGN);
	if (argc != 2) {
		fprintf(stderr, "usage: tcp PORT\n");
		return 2;
	}
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 16)) {
		perror("tcp");
		return 1;
	}
	printf("tcp: listening\n");
	fflush(stdout);
	for (;;) {
		int peer = accept(listener, NULL, NULL), failed;
		char kind;

		if (peer < 0) {
			perror("tcp: accept");
			return 1;
		}
		setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		failed = read(peer, &kind, 1) != 1;
		if (!failed)
			failed = kind == 's' ? take_stream(peer) : kind == 'm' ? give_stream(peer) : echo(peer);
		/* A peer that goes away early sees to that itself. */
		if (failed)
			fprintf(stderr, "tcp: %s\n", strerror(errno));
		close(peer);
	}
}
