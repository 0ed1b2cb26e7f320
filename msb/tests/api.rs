//! The public API, pinned in `api.txt`: a change of it shows in a diff. It is read from the source with syn, which takes a second;
//! cargo-public-api would need rustdoc's unstable JSON and a build of its own. Only what the source shows is compared: items that a
//! derive generates appear as that derive.
//!
//! `MSB_UPDATE_API=1 cargo test -p msb --test api` writes the file.

use std::fs;
use std::path::Path;

use quote::ToTokens;
use syn::{Attribute, Fields, ImplItem, Item, Visibility};

/// The items of a file and of its modules, a line for each.
fn list(file: &Path, dir: &Path, module: &str, lines: &mut Vec<String>) {
    let source = syn::parse_file(&fs::read_to_string(file).unwrap()).unwrap();
    for mut item in source.items {
        let is_impl = matches!(item, Item::Impl(_));
        let (visibility, attributes) = match &mut item {
            Item::Const(item) => (&item.vis, &mut item.attrs),
            Item::Enum(item) => (&item.vis, &mut item.attrs),
            Item::Fn(item) => (&item.vis, &mut item.attrs),
            Item::Struct(item) => (&item.vis, &mut item.attrs),
            Item::Trait(item) => (&item.vis, &mut item.attrs),
            Item::Type(item) => (&item.vis, &mut item.attrs),
            Item::Use(item) => (&item.vis, &mut item.attrs),
            // Whether the type is public does not show here.
            Item::Impl(item) => (&Visibility::Inherited, &mut item.attrs),
            Item::Mod(item) if item.content.is_none() && !is_test(&item.attrs) => {
                let name = item.ident.to_string();
                if matches!(item.vis, Visibility::Public(_)) {
                    lines.push(format!("{module}: {}", text(item)));
                }
                let (beside, within) = (dir.join(format!("{name}.rs")), dir.join(&name));
                let file = if beside.exists() { beside } else { within.join("mod.rs") };
                list(&file, &within, &format!("{module}::{name}"), lines);
                continue;
            }
            _ => continue,
        };
        if is_test(attributes) || !(matches!(visibility, Visibility::Public(_)) || is_impl) {
            continue;
        }
        attributes.retain(|attribute| !attribute.path().is_ident("doc") && !attribute.path().is_ident("expect"));
        lines.extend(signatures(item).into_iter().map(|line| format!("{module}: {line}")));
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| attribute.to_token_stream().to_string().contains("(test)"))
}

/// An item without its bodies, docs and private parts.
fn signatures(item: Item) -> Vec<String> {
    let kept = |attribute: &Attribute| attribute.path().is_ident("cfg") || attribute.path().is_ident("non_exhaustive");
    match item {
        Item::Fn(item) => vec![format!("pub {}", text(&item.sig))],
        Item::Const(item) => vec![format!("pub const {}: {}", item.ident, text(&item.ty))],
        Item::Struct(mut item) => {
            let fields = match &mut item.fields {
                Fields::Named(fields) => fields.named.iter_mut().collect(),
                Fields::Unnamed(fields) => fields.unnamed.iter_mut().collect(),
                Fields::Unit => Vec::new(),
            };
            let mut shown = Vec::new();
            for (place, field) in fields.into_iter().enumerate() {
                let name = field.ident.as_ref().map_or(place.to_string(), ToString::to_string);
                if matches!(field.vis, Visibility::Public(_)) {
                    shown.push(format!("pub struct {}: pub {name}: {}", item.ident, text(&field.ty)));
                }
            }
            item.fields = Fields::Unit;
            [vec![text(&item)], shown].concat()
        }
        Item::Enum(mut item) => {
            let variants = std::mem::take(&mut item.variants);
            let name = item.ident.clone();
            let mut lines = vec![text(&item)];
            for mut variant in variants {
                variant.attrs.retain(kept);
                variant.fields.iter_mut().for_each(|field| field.attrs.clear());
                lines.push(format!("pub enum {name}: {}", text(&variant)));
            }
            lines
        }
        Item::Impl(item) => {
            let owner = text(&item.self_ty);
            if let Some((_, path, _)) = &item.trait_ {
                return vec![format!("impl {} for {owner}", text(path))];
            }
            let methods = item.items.into_iter().filter_map(|item| match item {
                ImplItem::Fn(method) if matches!(method.vis, Visibility::Public(_)) => {
                    Some(format!("impl {owner}: pub {}", text(&method.sig)))
                }
                ImplItem::Const(constant) if matches!(constant.vis, Visibility::Public(_)) => {
                    Some(format!("impl {owner}: pub const {}: {}", constant.ident, text(&constant.ty)))
                }
                _ => None,
            });
            methods.collect()
        }
        other => vec![text(&other)],
    }
}

/// Tokens as one line.
fn text(tokens: &impl ToTokens) -> String {
    let mut text = tokens.to_token_stream().to_string();
    for (from, to) in [
        (" :: ", "::"),
        (":: ", "::"),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        (" ,", ","),
        (" : ", ": "),
        (" < ", "<"),
        (" >", ">"),
        ("& ", "&"),
        (" ;", ""),
        ("# [", "#["),
        (" [", "["),
        ("' ", "'"),
    ] {
        text = text.replace(from, to);
    }
    text
}

#[test]
fn the_public_api_is_the_recorded_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut lines = Vec::new();
    list(&root.join("src/lib.rs"), &root.join("src"), "msb", &mut lines);
    lines.sort();
    let (found, file) = (lines.join("\n") + "\n", root.join("api.txt"));
    if std::env::var_os("MSB_UPDATE_API").is_some() {
        fs::write(file, found).unwrap();
        return;
    }
    let recorded = fs::read_to_string(file).unwrap();
    let changes: Vec<String> = [("-", &recorded, &found), ("+", &found, &recorded)]
        .into_iter()
        .flat_map(|(sign, one, other)| {
            let other: Vec<&str> = other.lines().collect();
            one.lines().filter(move |line| !other.contains(line)).map(move |line| format!("{sign} {line}"))
        })
        .collect();
    let changes = changes.join("\n");
    assert!(
        changes.is_empty(),
        "the public API has changed:\n{changes}\n(if so meant: MSB_UPDATE_API=1, see this file)"
    );
}
