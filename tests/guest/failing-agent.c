/* In the agent's place: says more lines than an error shows, and ends. */
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
