/*
 * init: the first process of a test guest.
 *
 * Mounts the usual file systems, loads the modules named in /modules.load, then runs what the kernel command line
 * says in init.run="...", prints "init.run: status N" and resets the machine; without init.run, an interactive shell on
 * the console. The power button stops the guest at any time. It is a C program and not a shell script because a fork, an
 * exec and a system call each are dear where the guest's kernel is interpreted.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "tools.h"

/* A byte written here ends up in the exit status of the hypervisor, on hosts that listen. */
#define STATUS_PORT 0xf4
#define STATUS_MASK 31

/* Reads a small text file; an empty string when there is none. The caller never frees it: init lives for ever. */
static char *slurp(const char *path)
{
	char *text = calloc(1, 8192);
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (!text)
		abort();
	if (fd >= 0) {
		if (read(fd, text, 8191) < 0)
			text[0] = 0;
		close(fd);
	}
	return text;
}

static void mount_or_warn(const char *type, const char *directory)
{
	if (mkdir(directory, 0755) && errno != EEXIST)
		fprintf(stderr, "init: mkdir %s: %s\n", directory, strerror(errno));
	if (mount(type, directory, type, 0, NULL))
		fprintf(stderr, "init: mount %s: %s\n", directory, strerror(errno));
}

/* Loads the modules listed in /modules.load, one path a line, dependencies first. */
static void load_modules(void)
{
	for (char *path = strtok(slurp("/modules.load"), "\n"); path; path = strtok(NULL, "\n")) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);

		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
			fprintf(stderr, "init: module %s: %s\n", path, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
}

/* The value of init.run in a kernel command line, quotes taken off; NULL when there is none. */
static char *run_command(char *cmdline)
{
	static const char key[] = "init.run=";
	int quoted = 0;

	for (char *c = cmdline; *c; c++) {
		if (*c == '"')
			quoted = !quoted;
		if (quoted || (c != cmdline && c[-1] != ' ') || strncmp(c, key, strlen(key)))
			continue;
		c += strlen(key);
		if (*c == '"') {
			c++;
			c[strcspn(c, "\"")] = 0;
		} else {
			c[strcspn(c, " \n")] = 0;
		}
		return c;
	}
	return NULL;
}

/* Starts the shell; an interactive one gets the console as its controlling terminal. */
static pid_t start_shell(const char *command)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	setsid();
	if (!command) {
		char path[64] = "/dev/", *name = slurp("/sys/class/tty/console/active");
		/* With several consoles the last one listed is /dev/console. */
		char *last = strrchr(name, ' ');
		int fd;

		name[strcspn(name, "\n")] = 0;
		strncat(path, last ? last + 1 : name, sizeof(path) - strlen(path) - 1);
		fd = open(path, O_RDWR);
		if (fd >= 0) {
			for (int i = 0; i < 3; i++)
				dup2(fd, i);
			if (fd > 2)
				close(fd);
			ioctl(STDIN_FILENO, TIOCSCTTY, 1);
		}
	}
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (command)
		execl("/bin/sh", "sh", "-c", command, NULL);
	else
		execl("/bin/sh", "-sh", NULL);
	fprintf(stderr, "init: /bin/sh: %s\n", strerror(errno));
	_exit(127);
}

/* The input device with a power key, or -1. */
static int open_power_button(void)
{
	for (int i = 0; i < 8; i++) {
		char path[32];
		unsigned char keys[KEY_MAX / 8 + 1] = { 0 };
		int fd;

		snprintf(path, sizeof(path), "/dev/input/event%d", i);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			return -1;
		if (ioctl(fd, EVIOCGBIT(EV_KEY, sizeof(keys)), keys) >= 0 && keys[KEY_POWER / 8] & 1 << KEY_POWER % 8)
			return fd;
		close(fd);
	}
	return -1;
}

/* Reaps what has ended. True when the shell was among it; its status is then in *status. */
static int reap(pid_t shell, int *status)
{
	int wait_status, found = 0;
	pid_t pid;

	while ((pid = waitpid(-1, &wait_status, WNOHANG)) > 0) {
		if (pid == shell) {
			*status = WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 128 + WTERMSIG(wait_status);
			found = 1;
		}
	}
	return found;
}

static void stop(int how)
{
	/* The last line must have left the serial port before the machine is gone. */
	fflush(stdout);
	tcdrain(STDOUT_FILENO);
	sync();
	reboot(how);
	for (;;)
		pause();
}

int init_main(void)
{
	struct pollfd fds[2];
	struct signalfd_siginfo ignored;
	struct input_event event;
	sigset_t signals;
	char *command;
	pid_t shell;
	int status = 0;

	if (getpid() != 1) {
		fprintf(stderr, "init: must be the first process\n");
		return 1;
	}
	mount_or_warn("proc", "/proc");
	mount_or_warn("sysfs", "/sys");
	mount_or_warn("devtmpfs", "/dev");
	mount_or_warn("tmpfs", "/tmp");
	mount_or_warn("tmpfs", "/run");
	load_modules();
	setenv("PATH", "/bin", 1);
	setenv("HOME", "/", 1);
	command = run_command(slurp("/proc/cmdline"));

	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	fds[0] = (struct pollfd){ .fd = signalfd(-1, &signals, SFD_CLOEXEC), .events = POLLIN };
	fds[1] = (struct pollfd){ .fd = open_power_button(), .events = POLLIN };
	shell = start_shell(command);
	if (shell < 0) {
		fprintf(stderr, "init: fork: %s\n", strerror(errno));
		status = 127;
	}
	while (shell > 0) {
		if (poll(fds, 2, -1) < 0)
			continue;
		if (fds[0].revents && read(fds[0].fd, &ignored, sizeof(ignored)) > 0 && reap(shell, &status))
			break;
		if (fds[1].revents && read(fds[1].fd, &event, sizeof(event)) > 0 && event.type == EV_KEY &&
		    event.code == KEY_POWER && event.value) {
			printf("init: power button\n");
			stop(RB_POWER_OFF);
		}
	}
	if (command) {
		printf("init.run: status %d\n", status);
		fflush(stdout);
		if (status && !ioperm(STATUS_PORT, 1, 1))
			outb(status & STATUS_MASK, STATUS_PORT);
	}
	stop(RB_AUTOBOOT);
	return 0;
}
