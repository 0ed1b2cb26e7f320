//! The images of a stack of layers in the store: one of all of them merged, or one of the lower layers merged and one of each layer above.
//!
//! An image of the whole stack is best to read from. But an image on top of another one that is already there costs its own layers
//! alone, and shares the rest with it.

use std::path::{Path, PathBuf};

use super::mkfs::Mkfs;
use super::part::{Form, Part};
use crate::store::chain;

impl Mkfs {
    /// The images of the layers `lower` (top first) in the store at `home`, bottom first: one of the whole stack, or, if the store has
    /// none but has one of the lower layers, that one and those of the layers above, `most` in all. `None` if a directory is not a layer
    /// of that store.
    pub fn parts(&self, home: &Path, lower: &[PathBuf], most: usize) -> Option<Vec<Part>> {
        let part = |lower: &[PathBuf], form| {
            let chain_id = chain::chain_id_of(home, lower)?;
            let image = match form {
                Form::Merged => self.kept_path(home, &chain_id),
                Form::Layer => self.kept_layer_path(home, &chain_id),
            };
            Some(Part { image, lower: lower.to_vec(), form })
        };
        let whole = part(lower, Form::Merged)?;
        if whole.image.exists() {
            return Some(vec![whole]);
        }
        for on_top in 1..most.min(lower.len()) {
            let base = part(&lower[on_top..], Form::Merged)?;
            if base.image.exists() {
                let layers = (0..on_top).rev().map(|number| part(&lower[number..], Form::Layer));
                return std::iter::once(Some(base)).chain(layers).collect();
            }
        }
        Some(vec![whole])
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_stack_has_images_of_single_layers_on_the_largest_image_that_is_there() {
        let (scratch, mkfs) = (tempfile::tempdir().unwrap(), Mkfs::find().unwrap());
        let home = scratch.path();
        let layer = |name: char| home.join("layers/sha256").join(name.to_string().repeat(64));
        let layers: Vec<_> = "dcba".chars().map(layer).collect();
        let forms = |most: usize| -> Vec<(Form, usize)> {
            let parts = mkfs.parts(home, &layers, most).unwrap();
            parts.iter().map(|part| (part.form, part.lower.len())).collect()
        };
        let make = |lower: &[PathBuf]| {
            let image = mkfs.parts(home, lower, 1).unwrap().remove(0).image;
            fs::create_dir_all(image.parent().unwrap()).unwrap();
            fs::write(image, "").unwrap();
        };
        let whole = vec![(Form::Merged, 4)];
        assert_eq!(forms(4), whole);
        make(&layers[3..]);
        assert_eq!(forms(4), [(Form::Merged, 1), (Form::Layer, 2), (Form::Layer, 3), (Form::Layer, 4)]);
        assert_eq!(forms(3), whole, "there is room for two on top");
        make(&layers[1..]);
        assert_eq!(forms(4), [(Form::Merged, 3), (Form::Layer, 4)]);
        assert_eq!(forms(2), [(Form::Merged, 3), (Form::Layer, 4)]);
        for most in [0, 1] {
            assert_eq!(forms(most), whole);
        }
        let parts = mkfs.parts(home, &layers, 4).unwrap();
        assert!(parts.iter().all(|part| mkfs.made(&part.image)));
        assert_eq!(parts[1].lower, layers);
        make(&layers);
        assert_eq!(forms(4), whole);
        assert_eq!(mkfs.parts(home, &["/elsewhere".into()], 4), None);
    }
}
