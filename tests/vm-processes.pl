#!/usr/bin/perl
# Lists the processes of a test's VMs, one process ID per line, or kills them. In Perl, which starts fast: tests ask often.
#
#   tests/vm-processes.pl [--kill] PREFIX
#
# A process belongs to a VM if it has a file open whose path starts with PREFIX (every process of a VM inherits the file "alive"
# of its run directory, also one that has another root directory), or if its parent belongs to one. Zombies do not count.
#
# A process ID can be reused while this program runs. So each process is opened as a pidfd before anything about it is read, one that
# has ended by the time everything is read is dropped, and signals are sent through the pidfd.
use strict;
use warnings;
use POSIX ();

# Both numbers are the same on every architecture.
use constant { PIDFD_SEND_SIGNAL => 424, PIDFD_OPEN => 434 };

my $kill = @ARGV && $ARGV[0] eq '--kill' && shift;
my $prefix = shift // '';
$prefix =~ m{^/} && !@ARGV or die "usage: vm-processes.pl [--kill] PREFIX\n";

my (%pidfd, %parent, %found);
opendir my $proc, '/proc' or die "/proc: $!\n";
for my $pid (grep /^\d+$/, readdir $proc) {
    my $pidfd = syscall PIDFD_OPEN, $pid + 0, 0;
    next if $pidfd < 0;
    $pidfd{$pid} = $pidfd;
    open my $stat, '<', "/proc/$pid/stat" or next;
    ($parent{$pid}) = <$stat> =~ /.*\) \S (\d+)/s or next;
    opendir my $fds, "/proc/$pid/fd" or next;
    $found{$pid} = 1 if grep { index($_ // '', $prefix) == 0 } map { readlink "/proc/$pid/fd/$_" } readdir $fds;
}

# A pidfd is readable once its process has ended, reaped or not.
my $ended = my $pidfds = '';
vec($pidfds, $_, 1) = 1 for values %pidfd;
select $ended = $pidfds, undef, undef, 0;
my @alive = grep { !vec $ended, $pidfd{$_}, 1 } sort { $a <=> $b } keys %pidfd;
my %alive = map { $_ => 1 } @alive;
delete @found{grep { !$alive{$_} } keys %found};
while (my @more = grep { !$found{$_} && $found{$parent{$_} // 0} } @alive) {
    @found{@more} = (1) x @more;
}

for my $pid (grep { $found{$_} } @alive) {
    if ($kill) { syscall PIDFD_SEND_SIGNAL, $pidfd{$pid}, POSIX::SIGKILL, 0, 0 }
    else { print "$pid\n" }
}
