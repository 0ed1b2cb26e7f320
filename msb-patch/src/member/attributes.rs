//! The members `mode`, `uid` and `gid`, which several operations share.

/// Declares the members of an operation that also has `mode`, `uid` and `gid`, and a method that looks these up in the image.
/// `#[serde(flatten)]` would do the same, but it cannot deny unknown members, and its errors do not name the member.
macro_rules! members_with_attributes {
    ($(#[$doc:meta])* pub struct $Op:ident { $($(#[$member_doc:meta])* pub $member:ident: $Type:ty,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $Op {
            $($(#[$member_doc])* pub $member: $Type,)+
            /// The permission bits.
            #[serde(default)]
            pub mode: Option<$crate::member::mode::Mode>,
            /// The owner.
            #[serde(default)]
            pub uid: Option<$crate::member::owner::Owner>,
            /// The group.
            #[serde(default)]
            pub gid: Option<$crate::member::owner::Owner>,
        }

        impl $Op {
            /// The attributes that are requested, with names looked up in the image.
            fn attributes(
                &self,
                target: &$crate::target::Target,
            ) -> anyhow::Result<$crate::attributes::RequestedAttributes> {
                target.requested_attributes(self.mode, self.uid.as_ref(), self.gid.as_ref())
            }
        }
    };
}

pub(crate) use members_with_attributes;
