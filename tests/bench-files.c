/* bench-files N: makes N files of five bytes in the working directory, with the fewest calls that can: what msb-patch is
 * measured against (bench-patch.sh). */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    char name[32];
    for (int i = 0; argc > 1 && i < atoi(argv[1]); i++) {
        snprintf(name, sizeof name, "f%d", i);
        int fd = openat(AT_FDCWD, name, O_WRONLY | O_CREAT | O_EXCL, 0644);
        if (fd < 0 || write(fd, "hello", 5) != 5 || close(fd))
            return perror(name), 1;
    }
    return 0;
}
