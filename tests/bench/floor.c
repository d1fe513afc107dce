/* The floor of the benchmark: reads the live state that `scplan plan` needs, and does nothing with it.
 *
 * Standard input names containers, a line each: PID, then the paths of its device nodes and mounts. For each it asks
 * which namespaces it is in, dumps links, addresses and routes from the network namespace, asks there which links have
 * their other end on the host, and reads mountinfo, the cgroup files, and the status of the nodes and mounts. Of the
 * host it dumps the links, once. Prints how much it has read. Linux 5.6 for openat2(2).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/net_namespace.h>
#include <linux/openat2.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NETLINK_GET_STRICT_CHK_ 12
#define SKIP_STATS 8

static char buffer[1 << 17];
static unsigned long long bytes_read, messages, paths;
static int home;

static void fail(const char *what)
{
	fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int open_for(const char *pid, const char *file)
{
	char path[128];
	snprintf(path, sizeof path, "/proc/%s/%s", pid, file);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		fail(path);
	return fd;
}

/* Reads to the end; mountinfo gives about 4 KB at a time. The text of short files stays in the buffer. */
static size_t slurp(int fd)
{
	size_t total = 0;
	ssize_t got;
	while ((got = read(fd, buffer, sizeof buffer - 1)) > 0) {
		total += got;
		buffer[got] = 0;
	}
	if (got < 0)
		fail("read");
	close(fd);
	bytes_read += total;
	return total;
}

static void dump(int sock, int type, const void *header, size_t size)
{
	struct {
		struct nlmsghdr head;
		char body[64];
	} request = {.head = {
		.nlmsg_len = NLMSG_LENGTH(size), .nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP}};
	memcpy(NLMSG_DATA(&request.head), header, size);
	if (type == RTM_GETLINK) {
		struct rtattr *mask = (void *)((char *)&request + NLMSG_ALIGN(request.head.nlmsg_len));
		mask->rta_type = IFLA_EXT_MASK;
		mask->rta_len = RTA_LENGTH(4);
		*(unsigned *)RTA_DATA(mask) = SKIP_STATS;
		request.head.nlmsg_len = NLMSG_ALIGN(request.head.nlmsg_len) + mask->rta_len;
	}
	if (send(sock, &request, request.head.nlmsg_len, 0) < 0)
		fail("send");
	for (;;) {
		ssize_t got = recv(sock, buffer, sizeof buffer, 0);
		if (got < 0)
			fail("recv");
		struct nlmsghdr *message = (void *)buffer;
		for (size_t left = got; NLMSG_OK(message, left); message = NLMSG_NEXT(message, left)) {
			if (message->nlmsg_type == NLMSG_DONE)
				return;
			if (message->nlmsg_type == NLMSG_ERROR) {
				errno = -((struct nlmsgerr *)NLMSG_DATA(message))->error;
				fail("dump");
			}
			messages++;
		}
	}
}

static int open_netlink(void)
{
	int one = 1, sock = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (sock < 0 || setsockopt(sock, SOL_NETLINK, NETLINK_GET_STRICT_CHK_, &one, sizeof one))
		fail("socket");
	return sock;
}

static void dump_links(int sock)
{
	struct ifinfomsg links = {0};
	dump(sock, RTM_GETLINK, &links, sizeof links);
}

/* The number that the host's namespace has in this one: the other end of a veth names it. */
static void ask_for_home(int sock)
{
	struct {
		struct nlmsghdr head;
		struct rtgenmsg body;
		struct rtattr attribute;
		int fd;
	} request = {.head = {.nlmsg_len = sizeof request, .nlmsg_type = RTM_GETNSID, .nlmsg_flags = NLM_F_REQUEST},
		     .attribute = {.rta_len = RTA_LENGTH(sizeof(int)), .rta_type = NETNSA_FD},
		     .fd = home};
	if (send(sock, &request, sizeof request, 0) < 0 || recv(sock, buffer, sizeof buffer, 0) < 0)
		fail("RTM_GETNSID");
	messages++;
}

/* Routes name their link by its index; the loopback interface, which is first, has none that matter. */
static void name_links(int sock)
{
	for (int index = 2; index < 4; index++) {
		struct ifreq link = {.ifr_ifindex = index};
		if (ioctl(sock, SIOCGIFNAME, &link) && errno != ENODEV)
			fail("SIOCGIFNAME");
	}
}

static void read_network(const char *pid)
{
	int namespace = open_for(pid, "ns/net");
	if (setns(namespace, CLONE_NEWNET))
		fail("setns");
	int sock = open_netlink();
	struct ifaddrmsg addresses = {0};
	struct rtmsg routes = {0};
	dump_links(sock);
	dump(sock, RTM_GETADDR, &addresses, sizeof addresses);
	ask_for_home(sock);
	dump(sock, RTM_GETROUTE, &routes, sizeof routes);
	name_links(sock);
	close(sock);
	close(namespace);
}

static void ask_for_namespaces(const char *pid)
{
	static const char *kinds[] = {"net", "mnt", "user"};
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		char path[128], target[64];
		snprintf(path, sizeof path, "/proc/%s/ns/%s", pid, kinds[i]);
		ssize_t got = readlink(path, target, sizeof target);
		if (got < 0)
			fail(path);
		bytes_read += got;
	}
}

static void read_cgroup_file(const char *controller, const char *path, const char *file)
{
	char full[512];
	snprintf(full, sizeof full, "/sys/fs/cgroup/%s%s/%s", controller, path, file);
	int fd = open(full, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		slurp(fd);
	else if (errno != ENOENT)
		fail(full);
}

static void read_cgroups(const char *pid)
{
	static const char *files[][2] = {
		{"devices", "devices.list"},
		{"blkio", "blkio.throttle.read_bps_device"},
		{"blkio", "blkio.throttle.write_bps_device"},
		{"blkio", "blkio.throttle.read_iops_device"},
		{"blkio", "blkio.throttle.write_iops_device"},
		{"blkio", "blkio.bfq.weight_device"},
		{"memory", "memory.limit_in_bytes"},
		{"pids", "pids.max"},
		{"", "io.max"},
		{"", "memory.max"},
		{"", "pids.max"},
	};
	char list[4096];
	if (slurp(open_for(pid, "cgroup")) >= sizeof list)
		fail("cgroup: too long");
	memcpy(list, buffer, sizeof list);
	for (char *state, *line = strtok_r(list, "\n", &state); line; line = strtok_r(NULL, "\n", &state)) {
		char *controller = strchr(line, ':') + 1, *path = strchr(controller, ':');
		*path++ = 0;
		for (size_t i = 0; i < sizeof files / sizeof *files; i++)
			if (!strcmp(files[i][0], controller))
				read_cgroup_file(controller, path, files[i][1]);
	}
}

static void read_status(int root, const char *path)
{
	struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};
	struct stat status;
	int fd = syscall(SYS_openat2, root, path, &how, sizeof how);
	if (fd < 0 || fstat(fd, &status))
		fail(path);
	close(fd);
	paths++;
}

int main(void)
{
	char line[4096];
	home = open_for("self", "ns/net");
	int sock = open_netlink();
	dump_links(sock);
	close(sock);
	while (fgets(line, sizeof line, stdin)) {
		char *state, *pid = strtok_r(line, " \n", &state), *path;
		char root_path[64];
		slurp(open_for(pid, "stat"));
		ask_for_namespaces(pid);
		slurp(open_for(pid, "mountinfo"));
		read_cgroups(pid);
		snprintf(root_path, sizeof root_path, "/proc/%s/root", pid);
		int root = open(root_path, O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (root < 0)
			fail(root_path);
		while ((path = strtok_r(NULL, " \n", &state)))
			read_status(root, path);
		close(root);
		read_network(pid);
	}
	if (setns(home, CLONE_NEWNET))
		fail("setns");
	printf("%llu netlink messages, %llu nodes and mounts, %llu bytes of text\n", messages, paths, bytes_read);
	return 0;
}
