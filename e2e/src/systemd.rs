//! An image whose first process is systemd, made of what this machine's Debian package of it holds. It has one service of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::image::{ImageConfig, Packing, write_layout_of_tars};
use crate::test_host::{output_of, program};

/// The image's name.
pub const IMAGE: &str = "registry.test/systemd:1";

/// Copies the packages' files with the libraries that their programs load, and a shell. What needs a bus stays away.
const BUILD: &str = r#"set -eu
root=$1
cd "$root"
for directory in bin sbin lib lib64; do mkdir -p usr/$directory; ln -s usr/$directory $directory; done
mkdir -p dev etc/systemd/system/multi-user.target.wants proc run sys tmp root var/log marks
dpkg -L systemd libsystemd-shared | grep -v /share/ | while read -r path; do
  to=$(echo "$path" | sed -E 's#^/(bin|sbin|lib|lib64)/#/usr/\1/#')
  if [ -L "$path" ] || [ -f "$path" ]; then mkdir -p ".${to%/*}"; cp -Pp "$path" ".$to"; fi
done
find usr -type f -perm -100 -exec ldd {} + 2>/dev/null | sed -nE 's#^[^/]*(/[^ ]+) \(0x.*#\1#p' | sort -u | while read -r path; do
  to=$(echo "$path" | sed -E 's#^/(bin|sbin|lib|lib64)/#/usr/\1/#')
  [ -e ".$to" ] || { mkdir -p ".${to%/*}"; cp -Lp "$path" ".$to"; }
done
cp /bin/busybox usr/bin/busybox
for applet in sh sleep cat ls mount umount grep; do [ -e usr/bin/$applet ] || ln -s busybox usr/bin/$applet; done
rm -f usr/lib/systemd/system/*/systemd-logind.service usr/lib/systemd/system/*/systemd-user-sessions.service
ln -s /usr/lib/systemd/system/multi-user.target etc/systemd/system/default.target
cat >etc/systemd/system/demo.service <<'UNIT'
[Service]
ExecStart=/usr/bin/sleep 100000
ExecStop=/usr/bin/sh -c 'echo stopped in good order >/marks/demo'
MemoryMax=64M
UNIT
ln -s ../demo.service etc/systemd/system/multi-user.target.wants/demo.service
: >etc/machine-id
echo 'root:x:0:0:root:/root:/bin/sh' >etc/passwd
printf 'root:x:0:\nsystemd-journal:x:101:\n' >etc/group
tar -cf ../systemd.tar .
"#;

/// Writes the image as an OCI layout below `directory` and gives its path.
///
/// # Errors
/// When the package systemd is not installed.
pub fn image(directory: &Path) -> Result<PathBuf> {
    let work = tempfile::tempdir_in("/tmp").context("create a directory")?;
    let root = work.path().join("root");
    std::fs::create_dir(&root).context("create the image's root")?;
    output_of(program("sh").args(["-c", BUILD, "systemd"]).arg(&root)).context("gather systemd's files")?;
    let tar = std::fs::read(work.path().join("systemd.tar")).context("read the layer")?;
    let layout = directory.join("systemd.oci");
    let config = ImageConfig {
        command: vec!["/usr/lib/systemd/systemd".into()],
        env: vec!["PATH=/usr/sbin:/usr/bin".into(), "container=oci".into()],
        stop_signal: "SIGRTMIN+3".into(),
        ..ImageConfig::default()
    };
    write_layout_of_tars(&layout, IMAGE, vec![(tar, Packing::Plain)], &config)?;
    Ok(layout)
}
