/* Picks the program by name: /init, and links to it under /bin. */
#include <stdio.h>
#include <string.h>

#include "tools.h"

int main(int argc, char **argv)
{
	const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
	const char *name = slash ? slash + 1 : argc > 0 ? argv[0] : "";

	if (!strcmp(name, "init"))
		return init_main();
	if (!strcmp(name, "blocks"))
		return blocks_main(argc, argv);
	if (!strcmp(name, "hog"))
		return hog_main(argc, argv);
	if (!strcmp(name, "hold"))
		return hold_main(argc, argv);
	if (!strcmp(name, "tcp"))
		return tcp_main(argc, argv);
	if (!strcmp(name, "usage"))
		return usage_main(argc, argv);
	if (!strcmp(name, "vsock"))
		return vsock_main(argc, argv);
	fprintf(stderr, "%s: not one of init, blocks, hog, hold, tcp, usage, vsock\n", name);
	return 2;
}
