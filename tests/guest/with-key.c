// Executes a command with a session keyring that has the key "msb-test", whose number is in $MSB_TEST_KEY.
#include <linux/keyctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
    char number[16];
    long key = -1;
    if (argc > 1 && syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, "msb-test-session") >= 0)
        key = syscall(SYS_add_key, "user", "msb-test", "secret", 6L, KEY_SPEC_SESSION_KEYRING);
    if (key < 0) {
        perror("with-key");
        return 125;
    }
    snprintf(number, sizeof number, "%ld", key);
    setenv("MSB_TEST_KEY", number, 1);
    execvp(argv[1], argv + 1);
    perror(argv[1]);
    return 127;
}
