use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use tar::EntryType;

use super::super::fixture::TarBuilder;
use super::*;

#[test]
fn cve_2021_32760_names_that_lead_out_of_the_image_are_refused() {
    for name in
        ["../evil", "a/../../evil", "..", "/../evil", "a/b/../../../evil", ".wh.", ".wh...", "a/.wh.."]
    {
        let outcome = Case::unpack(&TarBuilder::default().file(name, b"x").finish());
        assert!(matches!(outcome.result, Err(UnpackError::Corrupt(_))), "{name}: {:?}", outcome.result);
        outcome.assert_outside_untouched();
    }
}

#[test]
fn cve_2021_32760_absolute_names_and_links_stay_in_the_image() {
    let outside = tempfile::tempdir().expect("temp dir");
    let victim = outside.path().join("victim");
    fs::write(&victim, "untouched").expect("write");
    let (out, file) = (outside.path().display().to_string(), victim.display().to_string());
    let mode = fs::metadata(outside.path()).expect("stat").mode();
    for layer in [
        TarBuilder::default().file(&file, b"evil"),
        TarBuilder::default().symlink("link", &out).file("link/victim", b"evil"),
        TarBuilder::default().symlink("link", "../../../../../..").file(&format!("link{file}"), b"evil"),
        TarBuilder::default().symlink("a", "b").symlink("b", &out).file("a/victim", b"evil"),
        TarBuilder::default().symlink("link", &file).file("link", b"evil"),
        TarBuilder::default().symlink("link", &out).entry(EntryType::Directory, "link/", "", 0o777, b""),
        TarBuilder::default().symlink("d", &out).entry(EntryType::Directory, "d/victim", "", 0o777, b""),
        TarBuilder::default().symlink("p", "/proc/self/root").file(&format!("p{file}"), b"evil"),
        TarBuilder::default()
            .directory("d/")
            .file("d/x", b"")
            .file("d", b"now a file")
            .symlink("d", &out)
            .file("d/victim", b"evil"),
    ] {
        let outcome = Case::unpack(&layer.finish());
        outcome.result.as_ref().expect("harmless");
        assert_eq!(fs::read_to_string(&victim).expect("read"), "untouched");
        assert_eq!(fs::read_dir(outside.path()).expect("list").count(), 1);
        assert_eq!(fs::metadata(outside.path()).expect("stat").mode(), mode);
    }
}

#[test]
fn cve_2021_32760_hard_links_reach_only_files_of_the_layer_and_never_through_symlinks() {
    let outside = tempfile::tempdir().expect("temp dir");
    let victim = outside.path().join("victim");
    fs::write(&victim, "secret").expect("write");
    let (out, file) = (outside.path().display().to_string(), victim.display().to_string());
    for layer in [
        TarBuilder::default().hard_link("stolen", &file),
        TarBuilder::default().hard_link("stolen", &format!("../../../../../..{file}")),
        TarBuilder::default().symlink("link", &out).hard_link("stolen", "link/victim"),
        TarBuilder::default().directory("d/").hard_link("stolen", "d"),
        TarBuilder::default().hard_link("stolen", ""),
    ] {
        let outcome = Case::unpack(&layer.finish());
        assert!(matches!(outcome.result, Err(UnpackError::Corrupt(_))), "{:?}", outcome.result);
        assert!(!outcome.root.path().join("stolen").exists());
    }
    let outcome = Case::unpack(
        &TarBuilder::default()
            .symlink("link", &file)
            .hard_link("stolen", "link")
            .file("stolen", b"evil")
            .finish(),
    );
    outcome.result.as_ref().expect("a second name of the symlink, then replaced");
    assert_eq!(fs::read_to_string(&victim).expect("read"), "secret");
    let own = Case::unpack(
        &TarBuilder::default().file("a", b"x").hard_link("b", "/a").hard_link("a", "b").finish(),
    );
    own.result.as_ref().expect("own links");
    assert_eq!(fs::metadata(own.root.path().join("a")).expect("stat").nlink(), 2);
}

/// Somebody exchanges a directory of the layer and a link to the host's while the layer is unpacked into it.
#[test]
fn cve_2025_47290_links_swapped_while_unpacking_lead_nowhere() {
    let outside = tempfile::tempdir().expect("temp dir");
    let out = outside.path().display().to_string();
    let mode = fs::metadata(outside.path()).expect("stat").mode();
    let mut layer = TarBuilder::default().directory("d/").symlink("link", &out);
    for number in 0..2000 {
        layer = layer.file(&format!("d/{number}"), b"evil");
        layer = layer.entry(EntryType::Directory, &format!("d/sub{number}/"), "", 0o777, b"");
        layer = layer.entry(EntryType::Directory, "d/", "", 0o777, b"");
        layer = layer.file(&format!("d/.wh.gone{number}"), b"");
    }
    let layer = layer.finish();
    let temp = tempfile::tempdir().expect("temp dir");
    let root = fs::File::open(temp.path()).expect("open");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut swaps = 0;
    std::thread::scope(|scope| {
        let racer = scope.spawn(|| {
            let mut swaps = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                swaps += i32::from(rustix::fs::renameat_with(&root, "d", &root, "link", exchange).is_ok());
            }
            swaps
        });
        // Torn by the race or not: what matters is what lies outside.
        let _ =
            unpack(io::BufReader::new(&layer[..]), root.try_clone().expect("dup").into(), &Limits::default());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        swaps = racer.join().expect("the racer");
    });
    assert!(swaps > 0, "nothing was raced");
    assert_eq!(fs::read_dir(outside.path()).expect("list").count(), 0);
    assert_eq!(fs::metadata(outside.path()).expect("stat").mode(), mode);
}

#[test]
fn later_entries_replace_earlier_ones_of_any_kind() {
    let layer = TarBuilder::default()
        .file("f", b"old")
        .file("f", b"new")
        .directory("d/")
        .file("d/sub/x", b"")
        .file("d", b"file")
        .file("e", b"")
        .directory("e/")
        .file("e/x", b"in e")
        .symlink("s", "f")
        .file("s", b"own")
        .entry(EntryType::Directory, "k/", "", 0o700, b"")
        .file("k/x", b"kept")
        .entry(EntryType::Directory, "k/", "", 0o711, b"");
    let outcome = Case::unpack(&layer.finish());
    outcome.result.as_ref().expect("unpacked");
    let read = |name: &str| fs::read_to_string(outcome.root.path().join(name)).expect(name);
    assert_eq!(
        [read("f"), read("d"), read("e/x"), read("s"), read("k/x")],
        ["new", "file", "in e", "own", "kept"]
    );
    assert_eq!(
        fs::metadata(outcome.root.path().join("k")).expect("stat").permissions().mode() & 0o777,
        0o711
    );
}

#[test]
fn archives_that_are_damaged_or_too_much_are_refused() {
    let good = TarBuilder::default().file("a", &[1; 5000]).finish();
    let mut checksum = good.clone();
    checksum[0] = b'b';
    for (bytes, what) in [
        (&good[..700], "middle"),
        (&good[..100], "middle"),
        (&checksum[..], "tar archive"),
        (&[7; 2048][..], "tar archive"),
    ] {
        let error = Case::unpack(bytes).result.expect_err(what).to_string();
        assert!(error.contains(what), "{error}");
    }
    let with =
        |kind: EntryType, content: &[u8]| TarBuilder::default().entry(kind, "x", "", 0o644, content).finish();
    assert!(matches!(
        Case::unpack(&with(EntryType::GNUSparse, b"")).result,
        Err(UnpackError::Unsupported(_))
    ));
    assert!(matches!(Case::unpack(&with(EntryType::new(b'Z'), b"")).result, Err(UnpackError::Corrupt(_))));
    let huge = vec![0; 2 << 20];
    assert!(matches!(
        Case::unpack(&with(EntryType::XHeader, &huge)).result,
        Err(UnpackError::TooLarge { .. })
    ));
    assert!(matches!(
        Case::unpack(&with(EntryType::GNULongName, &huge)).result,
        Err(UnpackError::TooLarge { .. })
    ));
    let few = Limits { layer_entries: 2, ..Limits::default() };
    let three = TarBuilder::default().file("a", b"").file("b", b"").file("c", b"").finish();
    assert!(matches!(Case::with_limits(&three, &few).result, Err(UnpackError::TooLarge { .. })));
    let circle = TarBuilder::default().symlink("a", "b").symlink("b", "a").file("a/x", b"").finish();
    assert!(matches!(Case::unpack(&circle).result, Err(UnpackError::Corrupt(_))));
    let inside = TarBuilder::default().file("f", b"").file("f/x", b"").finish();
    assert!(matches!(Case::unpack(&inside).result, Err(UnpackError::Corrupt(_))));
}

#[test]
fn long_names_times_and_modes_come_through_pax_and_gnu_records() {
    let long = format!("{}/{}", "d".repeat(120), "n".repeat(200));
    let layer = TarBuilder::default()
        .pax(&[("path", long.as_bytes()), ("mtime", b"1234567890.123456789"), ("size", b"5")])
        .file("short", b"hello")
        .entry(EntryType::GNULongName, "././@LongLink", "", 0o644, format!("gnu/{long}\0").as_bytes())
        .entry(EntryType::Regular, "cut", "", 0o600, b"gnu");
    let outcome = Case::unpack(&layer.finish());
    outcome.result.as_ref().expect("unpacked");
    let meta = fs::metadata(outcome.root.path().join(&long)).expect("stat");
    assert_eq!((meta.len(), meta.mtime(), meta.mtime_nsec()), (5, 1_234_567_890, 123_456_789));
    assert_eq!(fs::read_to_string(outcome.root.path().join("gnu").join(&long)).expect("read"), "gnu");
}

#[test]
fn cve_2025_62518_no_entry_hides_behind_a_pax_size_as_gnu_tar_reads_it() {
    let hidden = TarBuilder::default().file("smuggled", b"evil").finish();
    let size = hidden.len().to_string();
    // The header says that the file is empty, the record that another archive is in it.
    let lying = TarBuilder::default()
        .pax(&[("size", size.as_bytes())])
        .with(EntryType::Regular, "outer", "", &hidden, |header| header.set_size(0))
        .file("after", b"good")
        .finish();
    // And the other way round: the record wins again.
    let short = TarBuilder::default().pax(&[("size", b"4")]).with(
        EntryType::Regular,
        "outer",
        "",
        b"good",
        |header| header.set_size(512),
    );
    for (archive, expect) in
        [(lying, vec!["after", "outer"]), (short.file("after", b"x").finish(), vec!["after", "outer"])]
    {
        let temp = tempfile::tempdir().expect("temp dir");
        let (file, theirs) = (temp.path().join("a.tar"), temp.path().join("theirs"));
        fs::write(&file, &archive).expect("write");
        fs::create_dir(&theirs).expect("mkdir");
        run("tar", &["-C", &theirs.display().to_string(), "-xf", &file.display().to_string()]);
        let ours = Case::unpack(&archive);
        ours.result.as_ref().expect("unpacked");
        let names = |root: &Path| {
            let names = fs::read_dir(root).expect("list").map(|entry| entry.expect("entry").file_name());
            let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(names(ours.root.path()), expect);
        assert_eq!(names(&theirs), expect);
        for name in expect {
            let read = |root: &Path| fs::read(root.join(name)).expect(name);
            assert_eq!(read(ours.root.path()), read(&theirs), "{name}");
        }
    }
}

#[test]
fn directories_that_are_only_implied_take_after_the_layer_below() {
    let below =
        Case::unpack(&TarBuilder::default().entry(EntryType::Directory, "opt/", "", 0o1770, b"").finish());
    let above = Case::unpack(&TarBuilder::default().file("opt/new/x", b"").finish());
    let unpacked = above.result.as_ref().expect("unpacked");
    let open = |case: &Case| OwnedFd::from(fs::File::open(case.root.path()).expect("open"));
    adopt(&open(&above), &unpacked.implied, &[open(&below)]).expect("adopted");
    let meta = fs::metadata(above.root.path().join("opt")).expect("stat");
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o1770, 1_600_000_000));
    assert_eq!(fs::metadata(above.root.path().join("opt/new")).expect("stat").mode() & 0o7777, 0o755);
}

#[test]
fn implied_directories_are_made_where_symlinks_of_the_layer_lead() {
    let layer = TarBuilder::default()
        .symlink("link", "real/deep")
        .file("a/b/c/x", b"")
        .file("a/b/d/x", b"")
        .file("link/e/f/x", b"");
    let outcome = Case::unpack(&layer.finish());
    let implied: Vec<_> = outcome
        .result
        .as_ref()
        .expect("unpacked")
        .implied
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    assert_eq!(implied, ["a", "a/b", "a/b/c", "a/b/d", "real", "real/deep", "real/deep/e", "real/deep/e/f"]);
    assert!(outcome.root.path().join("real/deep/e/f/x").exists());
    let through_a_file = Case::unpack(&TarBuilder::default().file("a/f", b"").file("a/f/b/x", b"").finish());
    assert!(matches!(through_a_file.result, Err(UnpackError::Corrupt(_))));
}

#[test]
#[ignore = "needs root"]
fn whiteouts_become_overlays_own_and_hide_only_what_is_below() {
    let layer = TarBuilder::default()
        .file("dir/.wh.gone", b"")
        .file("kept", b"own")
        .file(".wh.kept", b"")
        .file(".wh.back", b"")
        .directory("back/")
        .file(".wh.implied", b"")
        .file("implied/x", b"")
        .directory("own/")
        .file(".wh.own", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/x", b"")
        .file(".wh..wh.plnk/1.2", b"")
        .file(".wh..wh.aufs", b"");
    let outcome = Case::unpack(&layer.finish());
    outcome.result.as_ref().expect("unpacked");
    let at = |name: &str| outcome.root.path().join(name);
    let gone = fs::symlink_metadata(at("dir/gone")).expect("stat");
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(fs::read_to_string(at("kept")).expect("read"), "own");
    for (name, expect) in [("back", true), ("implied", true), ("own", true), ("opaque", true), ("dir", false)]
    {
        let mut value = [0; 8];
        let got = rustix::fs::getxattr(at(name), "trusted.overlay.opaque", &mut value[..]);
        assert_eq!(got == Ok(1) && value[0] == b'y', expect, "{name}: {got:?}");
    }
    assert!(
        fs::read_dir(outcome.root.path())
            .expect("list")
            .all(|entry| { !entry.expect("entry").file_name().to_string_lossy().starts_with(".wh.") })
    );
}

#[test]
#[ignore = "needs root"]
fn whiteouts_of_odd_names_hide_just_that_name() {
    let longest = "n".repeat(255 - ".wh.".len());
    let odd = ["a\nb", " ", "-rf", "*", "...", "a.wh.b", "..a", "%s", "\u{fc}", "opq", &longest];
    let mut layer = TarBuilder::default().directory("kept/");
    for name in odd {
        let path = format!("d/.wh.{name}");
        layer = layer.pax(&[("path", path.as_bytes())]).file("x", b"ignored content");
    }
    let outcome = Case::unpack(&layer.finish());
    outcome.result.as_ref().expect("unpacked");
    for name in odd {
        let meta = fs::symlink_metadata(outcome.root.path().join("d").join(name)).expect(name);
        assert!(meta.file_type().is_char_device() && meta.rdev() == 0, "{name:?}");
    }
    assert_eq!(fs::read_dir(outcome.root.path().join("d")).expect("list").count(), odd.len());
    assert_eq!(fs::read_dir(outcome.root.path()).expect("list").count(), 2);
    let too_long = format!("d/.wh.{}", "n".repeat(256));
    let too_long = TarBuilder::default().pax(&[("path", too_long.as_bytes())]).file("x", b"");
    assert!(Case::unpack(&too_long.finish()).result.is_err());
    // A link or a device that has a whiteout's name is a whiteout all the same, as upstream has it: it makes nothing else.
    let link = Case::unpack(&TarBuilder::default().symlink("d/.wh.x", "/etc/passwd").finish());
    assert!(link.result.is_err() || fs::read_link(link.root.path().join("d/x")).is_err());
    assert!(!link.root.path().join("d/.wh.x").is_symlink());
    link.assert_outside_untouched();
}

#[test]
#[ignore = "needs root"]
fn owners_set_id_bits_devices_and_attributes_are_as_in_the_archive() {
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let owned = |tar: TarBuilder, kind, path: &str, mode: u32| {
        tar.with(kind, path, "", b"", |header| {
            header.set_mode(mode);
            header.set_uid(1000);
            header.set_gid(70_000);
            header.set_device_major(1).expect("gnu");
            header.set_device_minor(3).expect("gnu");
        })
    };
    let tar =
        owned(TarBuilder::default(), EntryType::Directory, "setgid/", 0o2775).file("setgid/rootfile", b"");
    let tar = owned(tar, EntryType::Regular, "suid", 0o4755);
    let tar = owned(tar, EntryType::Char, "null", 0o666);
    let tar = owned(tar, EntryType::Fifo, "fifo", 0o622);
    let tar = tar
        .pax(&[("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.security.selinux", b"label")])
        .with(EntryType::Regular, "ping", "", b"", |header| header.set_uid(5));
    let outcome = Case::unpack(&tar.finish());
    outcome.result.as_ref().expect("unpacked");
    let meta = |name: &str| fs::symlink_metadata(outcome.root.path().join(name)).expect(name);
    for (name, mode) in [("setgid", 0o2775), ("suid", 0o4755), ("null", 0o666), ("fifo", 0o622)] {
        let meta = meta(name);
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (mode, 1000, 70_000), "{name}");
        assert_eq!(meta.mtime(), 1_600_000_000, "{name}");
    }
    assert_eq!(meta("setgid/rootfile").gid(), 0, "no group is inherited while unpacking");
    assert!(meta("null").file_type().is_char_device() && meta("fifo").file_type().is_fifo());
    assert_eq!(rustix::fs::minor(meta("null").rdev()), 3);
    let mut value = [0; 64];
    let length =
        rustix::fs::getxattr(outcome.root.path().join("ping"), "security.capability", &mut value[..]);
    assert_eq!(&value[..length.expect("capability")], capability);
    for forged in ["trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.opaque"] {
        let key = format!("SCHILY.xattr.{forged}");
        let layer = TarBuilder::default().pax(&[(&key, b"y")]).directory("d/").finish();
        assert!(matches!(Case::unpack(&layer).result, Err(UnpackError::Corrupt(_))), "{forged}");
    }
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_archive_unpacks_as_gnu_tar_does() {
    let temp = tempfile::tempdir().expect("temp dir");
    let (archive, expected) = (temp.path().join("a.tar"), temp.path().join("expected"));
    fs::create_dir(&expected).expect("mkdir");
    run("tar", &["-C", "/usr", "-cf", &archive.display().to_string(), "bin", "share/perl5", "lib/python3"]);
    run("tar", &["-C", &expected.display().to_string(), "-xpf", &archive.display().to_string()]);
    let outcome = Case::unpack(&fs::read(&archive).expect("read"));
    outcome.result.as_ref().expect("unpacked");
    let (ours, theirs) = (listing(outcome.root.path()), listing(&expected));
    assert!(theirs.len() > 500, "a real archive");
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (path, expect) in theirs.into_iter().filter(|(path, _)| path != "lib" && path != "share") {
        assert_eq!(ours[&path], expect, "{path}");
    }
}

/// A layer unpacked into `root`; only `root` lies in its parent directory.
struct Case {
    temp: tempfile::TempDir,
    root: Root,
    result: Result<Unpacked, UnpackError>,
}

struct Root(PathBuf);

impl Root {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Case {
    fn unpack(tar: &[u8]) -> Self {
        Self::with_limits(tar, &Limits::default())
    }

    fn with_limits(tar: &[u8], limits: &Limits) -> Self {
        let temp = tempfile::tempdir().expect("temp dir");
        let root = temp.path().join("fs");
        fs::create_dir(&root).expect("mkdir");
        let fd = OwnedFd::from(fs::File::open(&root).expect("open"));
        let result = unpack(io::BufReader::new(tar), fd, limits);
        Self { temp, root: Root(root), result }
    }

    fn assert_outside_untouched(&self) {
        assert_eq!(fs::read_dir(self.temp.path()).expect("list").count(), 1, "only `fs`");
    }
}

#[expect(clippy::disallowed_methods, reason = "GNU tar is the reference")]
fn run(program: &str, args: &[&str]) {
    assert!(std::process::Command::new(program).args(args).status().expect(program).success());
}

/// Kind, mode, owner, time, size or link text and content hash of everything below `root`.
fn listing(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(directory).expect("list") {
            let path = entry.expect("entry").path();
            let meta = fs::symlink_metadata(&path).expect("stat");
            let content = match meta.file_type() {
                kind if kind.is_symlink() => format!("{:?}", fs::read_link(&path).expect("readlink")),
                kind if kind.is_file() => super::super::layout::digest_of(&fs::read(&path).expect("read")),
                _ => String::new(),
            };
            let line = format!(
                "{:o} {}:{} {} {} {content}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.nlink()
            );
            found.insert(path.strip_prefix(root).expect("below").display().to_string(), line);
            if meta.is_dir() {
                todo.push(path);
            }
        }
    }
    found
}
