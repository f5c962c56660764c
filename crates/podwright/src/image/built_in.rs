//! The image made of this very binary, so that a first pod needs no registry: `podwright web`.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use runtime::images::{BuiltInContent, BuiltInFile, Image, ImageConfig, ImageStore};

/// Its name; no registry has such an address.
pub(crate) const NAME: &str = "podwright.local/web:1";

/// Makes the image, if it is not there.
pub(crate) async fn import(store: &ImageStore) -> anyhow::Result<Arc<Image>> {
    let program = Path::new("/proc/self/exe");
    if !is_static(program).context("look at our own program")? {
        bail!("the image {NAME} needs a static podwright: hack/build.sh makes one");
    }
    let file = |path: &str, mode, content| BuiltInFile { path: path.to_owned(), mode, content };
    let mut files = vec![file("/podwright", 0o755, BuiltInContent::HostFile(program.to_owned()))];
    for (path, mode) in
        [("/etc", 0o755), ("/proc", 0o755), ("/sys", 0o755), ("/dev", 0o755), ("/tmp", 0o1777)]
    {
        files.push(file(path, mode, BuiltInContent::Directory));
    }
    let mut config = ImageConfig::default();
    config.set_entrypoint(Some(vec!["/podwright".to_owned(), "web".to_owned()]));
    config.set_env(Some(vec!["PATH=/".to_owned()]));
    config.set_exposed_ports(Some(vec!["8080/tcp".to_owned()]));
    store.import_built_in(NAME, files, config).await.with_context(|| format!("make the image {NAME}"))
}

/// Whether a program needs no interpreter: a 64-bit ELF file without PT_INTERP (gABI, program header).
fn is_static(program: &Path) -> std::io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let file = std::fs::File::open(program)?;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)?;
    let u16_at = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let mut offset = [0; 8];
    offset.copy_from_slice(&header[32..40]);
    let (offset, size, count) = (u64::from_ne_bytes(offset), u64::from(u16_at(54)), u64::from(u16_at(56)));
    for index in 0..count {
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, offset + index * size)?;
        if u32::from_ne_bytes(kind) == PT_INTERP {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_an_interpreter_is_not_static() {
        assert!(!is_static(Path::new("/bin/sh")).unwrap());
        let busybox = Path::new("/bin/busybox");
        if busybox.exists() {
            assert!(is_static(busybox).unwrap());
        }
    }

    #[test]
    fn the_example_uses_this_image() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/examples/hello.yaml");
        assert!(std::fs::read_to_string(example).unwrap().contains(NAME));
    }
}
