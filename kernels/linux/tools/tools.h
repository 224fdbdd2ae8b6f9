/* The helper programs of the test guests: one static binary, told apart by the name it was started under. */
#ifndef TOOLS_H
#define TOOLS_H

int init_main(void);
int hog_main(int argc, char **argv);
int vsock_main(int argc, char **argv);

#endif
