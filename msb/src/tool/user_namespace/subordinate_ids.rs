//! `/etc/subuid` and `/etc/subgid`: the IDs that a user may use in a user namespace besides its own (`subuid(5)`).

/// How many IDs useradd(8) gives a user, and the first of them.
const COUNT: u32 = 65_536;
const FIRST: u32 = 100_000;

/// The ranges that a file gives a user, who is named by name or by number.
pub(super) fn of_user(text: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    let is_of_user = |owner: &str| Some(owner) == name || owner.parse() == Ok(uid);
    entries(text)
        .filter(|(owner, first, count)| is_of_user(owner) && usable(*first, *count))
        .map(without_owner)
        .collect()
}

/// A range that none of the files gives to anybody yet.
pub(super) fn free(texts: &[&str]) -> (u32, u32) {
    let ends = texts.iter().flat_map(|text| entries(text)).map(|(_, first, count)| first.saturating_add(count));
    (ends.max().unwrap_or(0).clamp(FIRST, u32::MAX - COUNT), COUNT)
}

/// Root's ID is never given to a user, whatever the file says, and -1 is no ID.
fn usable(first: u32, count: u32) -> bool {
    first > 0 && count > 0 && first.checked_add(count).is_some()
}

fn without_owner((_, first, count): (&str, u32, u32)) -> (u32, u32) {
    (first, count)
}

fn entries(text: &str) -> impl Iterator<Item = (&str, u32, u32)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((owner, first, count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_ranges_of_its_name_and_of_its_number() {
        let text = "# comment\nalice:100000:65536\nbob:165536:65536\n1001:300000:10\nalice:x:1\nalice:0:5\nalice:4294967295:9\n\
                    alice:500000:0\n  alice:400000:20 \n";
        for (name, uid, expected) in [
            (Some("alice"), 1000, vec![(100_000, 65_536), (400_000, 20)]),
            (Some("bob"), 1001, vec![(165_536, 65_536), (300_000, 10)]),
            (None, 1001, vec![(300_000, 10)]),
            (Some("carol"), 1002, vec![]),
        ] {
            assert_eq!(of_user(text, name, uid), expected, "{name:?} {uid}");
        }
    }

    #[test]
    fn the_range_to_add_is_behind_all_others() {
        for (texts, first) in [
            (["", ""], 100_000),
            (["a:100000:65536", ""], 165_536),
            (["a:100000:65536", "b:200000:65536"], 265_536),
            (["a:5:10", "junk"], 100_000),
            (["a:4294967290:65536", ""], u32::MAX - COUNT),
        ] {
            assert_eq!(free(&texts), (first, COUNT), "{texts:?}");
        }
    }
}
