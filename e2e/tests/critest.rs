//! Upstream's own suite for CRI runtimes, on podwright and beside it on containerd + runc.
//!
//! `PODWRIGHT_CRITEST_FOCUS=REGEX` runs only what matches: for work on one spec, without judging the number.

use std::io::Write;
use std::path::Path;

use e2e::cri_server::Implementation;
use e2e::critest::images::Images;
use e2e::critest::{report, run};

/// What passes here today. Of 117, 9 need AppArmor, and 2 the public images byte by byte.
const PASSES: usize = 106;

#[test]
#[ignore = "needs root"]
fn critest_passes_as_on_the_reference() {
    let focus = std::env::var("PODWRIGHT_CRITEST_FOCUS").ok();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let images = Images::publish().expect("publish the images");
    let (ours, reference) = std::thread::scope(|scope| {
        let start = |implementation| {
            let (images, focus) = (&images, focus.as_deref());
            scope.spawn(move || run(implementation, images, directory, focus))
        };
        let (ours, reference) = (start(Implementation::Podwright), start(Implementation::Containerd));
        let joined = |name, run: std::thread::ScopedJoinHandle<'_, anyhow::Result<report::Report>>| {
            run.join().expect("no panic").unwrap_or_else(|error| panic!("run critest on {name}: {error:#}"))
        };
        (joined("podwright", ours), joined("containerd", reference))
    });
    let table = report::table(&ours, &reference);
    std::fs::write(directory.join("critest.txt"), &table).expect("keep the table");
    // Not by a macro: the table is to be seen when the test passes.
    let _ = std::io::stderr().write_all(format!("\ncritest 1.36.0\n{table}\n").as_bytes());
    if focus.is_none() {
        let passed = ours.passed();
        assert!(passed >= PASSES, "{passed} specs of critest passed; at least {PASSES} did before");
    }
}
