//! Generates the CRI v1 messages, client and server into `OUT_DIR` from `proto/cri-v1.proto`, without protoc.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Asked when it runs: a build directory may have been built at another path.
    let manifest_dir = std::env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo sets CARGO_MANIFEST_DIR")?;
    let proto_dir = Path::new(&manifest_dir).join("../../proto");
    let file = proto_dir.join("cri-v1.proto");
    println!("cargo:rerun-if-changed={}", file.display());
    let descriptors = protox::compile([&file], [&proto_dir])?;
    tonic_prost_build::configure()
        // Records on disk and the verbose parts of answers are the messages as JSON.
        .message_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]")
        .compile_fds(descriptors)?;
    Ok(())
}
