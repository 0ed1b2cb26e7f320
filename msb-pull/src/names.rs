//! Which image of an archive a name means. An image may have several names, and `latest` may be the tag of several images.
//! Pure.

use std::fmt::Display;

use anyhow::{bail, ensure};

use msb_registry::reference::Reference;

/// The message if a name is needed to choose between several images.
pub(crate) const AMBIGUOUS: &str = "several images: {} (choose one with :NAME)";

/// The images that a name means: more than one only if they are one image for several platforms.
#[derive(Debug)]
pub(crate) struct Chosen<'a, T> {
    pub(crate) images: Vec<&'a T>,
    /// Their common name.
    pub(crate) name: Option<String>,
    /// All names of the archive.
    pub(crate) listed: String,
}

/// Chooses among the images of an archive. Each has names, the full one first, and an identity; entries with the same identity
/// are one image. `@N` is the N-th entry, from 0.
///
/// # Errors
/// A message that lists the names.
pub(crate) fn choose<'a, T: PartialEq + Display>(
    entries: Vec<(Vec<String>, &'a T)>,
    tag: Option<&str>,
) -> anyhow::Result<Chosen<'a, T>> {
    let listed = list(&entries);
    let position = tag.and_then(|tag| tag.strip_prefix('@')?.parse::<usize>().ok());
    let chosen: Vec<&(Vec<String>, &T)> = match (position, tag) {
        (Some(position), _) => entries.iter().skip(position).take(1).collect(),
        (None, Some(tag)) => entries.iter().filter(|(names, _)| names.iter().any(|name| is_same(name, tag))).collect(),
        (None, None) => entries.iter().collect(),
    };
    let Some((first, _)) = chosen.first() else { bail!("no tag {:?}: it has {listed}", tag.unwrap_or_default()) };
    let mut images: Vec<&T> = Vec::new();
    for (_, image) in &chosen {
        if !images.contains(image) {
            images.push(image);
        }
    }
    // All have the same name, or none has a name.
    let whole = |names: &[String]| names.first().cloned();
    let is_one = chosen.iter().all(|(names, _)| whole(names) == whole(first));
    ensure!(images.len() == 1 || is_one, AMBIGUOUS.replace("{}", &listed));
    Ok(Chosen { images, name: whole(first), listed })
}

fn list<T: Display>(entries: &[(Vec<String>, &T)]) -> String {
    let mut listed: Vec<String> = Vec::new();
    for (names, image) in entries {
        let name = names.first().cloned().unwrap_or_else(|| format!("{image} without a name"));
        if !listed.contains(&name) {
            listed.push(name);
        }
    }
    listed.join(", ")
}

/// Whether two names mean the same image: as they are, or completed as docker completes them.
fn is_same(name: &str, asked: &str) -> bool {
    let whole = |name: &str| Reference::parse(name).ok().map(|name| name.whole());
    name == asked || whole(name).is_some_and(|name| Some(name) == whole(asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_one_image_or_is_refused() {
        static IDS: [u8; 3] = [0, 1, 2];
        let entries = |list: &[(&[&str], u8)]| -> Vec<(Vec<String>, &u8)> {
            let entry = |(names, id): &(&[&str], u8)| {
                (names.iter().map(|name| (*name).to_owned()).collect(), &IDS[usize::from(*id)])
            };
            list.iter().map(entry).collect()
        };
        let saved: &[(&[&str], u8)] = &[
            (&["docker.io/library/alpine:latest", "latest"], 1),
            (&["docker.io/library/busybox:latest", "latest"], 2),
        ];
        let twice: &[(&[&str], u8)] = &[(&["h:5/a:v1", "v1"], 1), (&["h:5/a:v2", "v2"], 1)];
        let platforms: &[(&[&str], u8)] = &[(&["latest"], 1), (&["latest"], 2)];
        for (list, tag, expected) in [
            (saved, None, Err("several images: docker.io/library/alpine:latest, docker.io/library/busybox:latest (")),
            (saved, Some("latest"), Err("several images")),
            (saved, Some("busybox"), Ok((&[2][..], Some("docker.io/library/busybox:latest")))),
            (saved, Some("docker.io/library/busybox:latest"), Ok((&[2], Some("docker.io/library/busybox:latest")))),
            (saved, Some("@1"), Ok((&[2], Some("docker.io/library/busybox:latest")))),
            (saved, Some("@2"), Err("no tag \"@2\"")),
            (saved, Some("debian"), Err("no tag \"debian\": it has docker.io/library/alpine:latest, ")),
            (twice, None, Ok((&[1], Some("h:5/a:v1")))),
            (twice, Some("h:5/a:v2"), Ok((&[1], Some("h:5/a:v2")))),
            (platforms, None, Ok((&[1, 2], Some("latest")))),
            (platforms, Some("latest"), Ok((&[1, 2], Some("latest")))),
            // Not a reference.
            (&[(&["My Image"], 1), (&["Other"], 2)], Some("My Image"), Ok((&[1], Some("My Image")))),
            (&[(&[], 1), (&[], 2)], None, Ok((&[1, 2], None))),
            (&[(&[], 1), (&[], 2)], Some("@1"), Ok((&[2], None))),
            (&[(&[], 1), (&[], 2)], Some("a"), Err("no tag \"a\": it has 1 without a name, 2 without a name")),
            (&[(&["a:v1"], 1), (&[], 2)], None, Err("several images: a:v1, 2 without a name")),
            (&[(&["a"], 0), (&["a"], 1), (&["b"], 2)], None, Err("several images: a, b (")),
        ] {
            match (choose(entries(list), tag), expected) {
                (Ok(chosen), Ok((ids, name))) => {
                    assert_eq!(chosen.images.iter().map(|id| **id).collect::<Vec<u8>>(), ids, "{tag:?}");
                    assert_eq!(chosen.name.as_deref(), name, "{tag:?}");
                }
                (Err(error), Err(message)) => assert!(error.to_string().contains(message), "{error}"),
                (chosen, _) => panic!("{tag:?}: {chosen:?}"),
            }
        }
    }
}
