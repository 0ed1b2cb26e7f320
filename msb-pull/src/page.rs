//! What msb-pull's manual page and `--help` say apart from the flags.

use msb::tool::man::{self, Page};

pub(crate) const PAGE: Page = Page {
    operands: "SOURCE",
    forms: &[],
    notes: &[],
    exit_status: man::EXIT_STATUS,
    environment: &[
        man::MSB_HOME,
        ("REGISTRY_AUTH_FILE", "A file with credentials, used if --authfile is not given"),
        ("DOCKER_CONFIG", "The directory of docker's config.json. Default: ~/.docker"),
        (
            "CONTAINERS_REGISTRIES_CONF",
            "The registries.conf. Default: ~/.config/containers/registries.conf, or else /etc/containers/registries.conf",
        ),
    ],
    files: &[
        (
            "/etc/containers/registries.conf, registries.conf.d/*.conf",
            "Mirrors, insecure and blocked registries, and what a name without a registry means (containers-registries.conf(5))",
        ),
        (
            "/etc/containers/certs.d, /etc/docker/certs.d",
            "Certificates by registry (containers-certs.d(5)); those in ~/.config/containers/certs.d are found first",
        ),
        ("$MSB_HOME/blobs", "Manifests and image configurations, by digest"),
        ("$MSB_HOME/references", "The digest of each image, by its reference (--policy missing)"),
        ("$MSB_HOME/layers", "Unpacked layers, by diff_id, in the form that overlayfs mounts"),
        ("$MSB_HOME/erofs", "EROFS images, by chain ID (--erofs, or the first boot)"),
    ],
    examples: &[
        ("an image from Docker Hub", "msb-pull alpine > image.json"),
        ("a registry on this host", "msb-pull localhost:5000/demo:v1 > image.json"),
        ("an image that is pulled only once", "msb-pull --policy missing localhost:5000/demo:v1 > image.json"),
        ("an OCI layout, by tag", "msb-pull oci:./layout:v1 > image.json"),
        ("an archive on stdin", "docker save alpine | msb-pull - > image.json"),
        ("the tar archive of a root", "mmdebstrap bookworm - | msb-pull --cmd bash - > debian.json"),
        ("a directory as the root", "msb-pull ./rootfs > dir.json"),
        ("feed the next stage", "msb-pull alpine | msb-mount ./root > root.json"),
    ],
    see_also: &["msb-patch(1)", "msb-mount(1)", "msb-boot(1)", "msb-store(1)", "msb-record(5)", "msb(7)"],
};
