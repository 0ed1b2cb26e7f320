/*
 * Prints a manifest of a tree, to compare the host's with the guest's: for each path its type, mode, owner, mtime, number of links, size or
 * device, target, a checksum of its content, and its xattrs except for those of overlayfs.
 *
 *     manifest DIR      without DIR itself, and without the mount points of a runtime: /dev, /proc, /run, /sys, /.msb
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

static char value[65536], names[65536];

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void show_xattrs(const char *path)
{
	char *list[512];
	int count = 0;
	ssize_t length = llistxattr(path, names, sizeof names);
	for (char *name = names; length > 0 && name < names + length && count < 512; name += strlen(name) + 1)
		list[count++] = name;
	qsort(list, count, sizeof *list, by_name);
	for (int i = 0; i < count; i++) {
		if (strstr(list[i], ".overlay."))
			continue;
		ssize_t got = lgetxattr(path, list[i], value, sizeof value);
		printf(" %s=", list[i]);
		for (ssize_t at = 0; at < got; at++)
			printf("%02x", (unsigned char)value[at]);
	}
}

/* FNV-1a, 64 bits. */
static uint64_t sum(const char *path)
{
	uint64_t hash = 0xcbf29ce484222325u;
	static unsigned char block[65536];
	int fd = open(path, O_RDONLY);
	ssize_t got;
	if (fd < 0)
		return 0;
	while ((got = read(fd, block, sizeof block)) > 0)
		for (ssize_t at = 0; at < got; at++)
			hash = (hash ^ block[at]) * 0x100000001b3u;
	close(fd);
	return hash;
}

static void show(const char *path, const char *name)
{
	struct stat st;
	if (lstat(path, &st)) {
		printf("%s: ?\n", name);
		return;
	}
	printf("%s %o %u:%u %lld.%09ld", name, st.st_mode, st.st_uid, st.st_gid, (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
	if (!S_ISDIR(st.st_mode))
		printf(" links %u", (unsigned)st.st_nlink);
	if (S_ISREG(st.st_mode))
		printf(" size %lld sum %016llx", (long long)st.st_size, (unsigned long long)sum(path));
	if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode))
		printf(" device %u:%u", major(st.st_rdev), minor(st.st_rdev));
	if (S_ISLNK(st.st_mode)) {
		ssize_t got = readlink(path, value, sizeof value - 1);
		printf(" -> %.*s", (int)(got < 0 ? 0 : got), value);
	}
	show_xattrs(path);
	putchar('\n');
}

static int is_mounted_on(const char *name)
{
	static const char *const mounted[] = { "dev", "proc", "run", "sys", ".msb" };
	for (size_t i = 0; i < sizeof mounted / sizeof *mounted; i++)
		if (!strcmp(name, mounted[i]))
			return 1;
	return 0;
}

static void walk(const char *dir, const char *inside)
{
	struct dirent **list;
	int count = scandir(dir, &list, NULL, alphasort);
	for (int i = 0; i < count; i++) {
		const char *child = list[i]->d_name;
		struct stat st;
		char *path, *name;
		if (!strcmp(child, ".") || !strcmp(child, "..") || (!*inside && is_mounted_on(child)))
			continue;
		if (asprintf(&path, "%s/%s", dir, child) < 0 || asprintf(&name, "%s/%s", inside, child) < 0)
			exit(1);
		show(path, name);
		if (!lstat(path, &st) && S_ISDIR(st.st_mode))
			walk(path, name);
		free(path);
		free(name);
	}
}

int main(int argc, char **argv)
{
	if (argc != 2)
		return 2;
	walk(argv[1], "");
	return 0;
}
