/* An agent that fails: prints more lines than an error message shows, and exits. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	for (int n = 1; n <= 30; n++)
		printf("line %d\n", n);
	puts("FATAL: config missing");
	fflush(stdout);
	sleep(1);
	return 3;
}
