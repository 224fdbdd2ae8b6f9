/* The helper programs of the test guests: one static binary, told apart by the name it was started under. */
#ifndef TOOLS_H
#define TOOLS_H

#include <stddef.h>
#include <stdint.h>

int init_main(void);
int blocks_main(int argc, char **argv);
int hog_main(int argc, char **argv);
int hold_main(int argc, char **argv);
int tcp_main(int argc, char **argv);
int usage_main(int argc, char **argv);
int vsock_main(int argc, char **argv);

/* The number of a text like 50M (K, M or G may follow it); 0 for anything else. */
size_t parse_size(const char *text);

/* A different, incompressible sequence for every page and every salt: its word i. */
uint64_t pattern_word(uint64_t page, uint64_t salt, unsigned i);

#endif
