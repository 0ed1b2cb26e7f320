//! The flags for what a VM may take of the host.

use std::ops::RangeInclusive;

use clap::Args;
use msb::record::Limits;
use msb::tool::size;

/// The weights of cgroups.
pub(crate) const WEIGHT: RangeInclusive<i64> = 1..=10_000;
/// The smallest and largest quota, in percent: the kernel takes no less than a millisecond in a tenth of a second.
pub(crate) const QUOTA: RangeInclusive<u32> = 1..=102_400;

/// The flags.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Limits of the host")]
pub(crate) struct LimitArgs {
    /// The processor time that the VM may take, with the processes that serve it, as a percentage of one processor: 150% is one and
    /// a half. A VM with any of these limits has a cgroup
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub cpu_quota: Option<u32>,

    /// Its share of the processors when they are busy; other cgroups have 100 by default
    #[arg(long, value_name = "1-10000", value_parser = clap::value_parser!(u16).range(WEIGHT))]
    pub cpu_weight: Option<u16>,

    /// Its share of the disks when they are busy; other cgroups have 100 by default
    #[arg(long, value_name = "1-10000", value_parser = clap::value_parser!(u16).range(WEIGHT))]
    pub io_weight: Option<u16>,

    /// The host's memory that it may take, in MiB or with a suffix K, M or G: the guest's memory and what the VMM needs besides
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory_max: Option<u32>,

    /// How many processes and threads of the host it may have
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub pids_max: Option<u32>,
}

impl LimitArgs {
    /// The recorded limits, overridden by the flags.
    pub(crate) fn override_recorded(&self, recorded: &Limits) -> Limits {
        let mut limits = recorded.clone();
        limits.cpu_quota_percent = self.cpu_quota.or(limits.cpu_quota_percent);
        limits.cpu_weight = self.cpu_weight.or(limits.cpu_weight);
        limits.io_weight = self.io_weight.or(limits.io_weight);
        limits.memory_max_mib = self.memory_max.or(limits.memory_max_mib);
        limits.pids_max = self.pids_max.or(limits.pids_max);
        limits
    }
}

/// Checks limits as the flags are checked. The error has the member.
pub(crate) fn check(limits: &Limits) -> Result<(), (&'static str, String)> {
    if let Some(Err(why)) = limits.cpu_quota_percent.map(check_percent) {
        return Err(("cpu_quota_percent", why));
    }
    for (member, weight) in [("cpu_weight", limits.cpu_weight), ("io_weight", limits.io_weight)] {
        if weight.is_some_and(|weight| !WEIGHT.contains(&i64::from(weight))) {
            return Err((member, format!("a weight is {} to {}", WEIGHT.start(), WEIGHT.end())));
        }
    }
    if limits.pids_max == Some(0) {
        return Err(("pids_max", "at least one process is expected".into()));
    }
    Ok(())
}

fn percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse().map_err(|_| "a percentage is expected, as in 150%")?;
    check_percent(number)
}

fn check_percent(percent: u32) -> Result<u32, String> {
    if QUOTA.contains(&percent) {
        Ok(percent)
    } else {
        Err(format!("a quota is {}% to {}%", QUOTA.start(), QUOTA.end()))
    }
}

fn memory(text: &str) -> Result<u32, String> {
    u32::try_from(size::parse(text)? >> 20).map_err(|_| "it is too large".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_a_percentage() {
        assert_eq!(percent("150%"), Ok(150));
        assert_eq!(percent("1"), Ok(1));
        for text in ["", "%", "0%", "1.5", "-1", "102401%"] {
            assert!(percent(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn flags_override_recorded_limits_and_records_are_checked() {
        let mut recorded = Limits::default();
        (recorded.cpu_weight, recorded.pids_max) = (Some(7), Some(8));
        let args = LimitArgs { cpu_weight: Some(9), memory_max: Some(600), ..LimitArgs::default() };
        let limits = args.override_recorded(&recorded);
        assert_eq!((limits.cpu_weight, limits.pids_max, limits.memory_max_mib), (Some(9), Some(8), Some(600)));
        assert!(check(&limits).is_ok());
        let wrong = |change: fn(&mut Limits)| {
            let mut limits = Limits::default();
            change(&mut limits);
            check(&limits).unwrap_err().0
        };
        assert_eq!(wrong(|limits| limits.cpu_quota_percent = Some(0)), "cpu_quota_percent");
        assert_eq!(wrong(|limits| limits.io_weight = Some(10_001)), "io_weight");
        assert_eq!(wrong(|limits| limits.pids_max = Some(0)), "pids_max");
    }
}
