//! Compiles the protos with protox, so that building needs no `protoc`.

use prost::Message as _;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);

    let link = protox::compile(["keyway/link/v1/link.proto"], ["proto"])?;
    prost_build::Config::new().compile_fds(link)?;

    let node = protox::compile(["keyway/node/v1/node.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(node)?;

    let public = protox::Compiler::new(["proto"])?
        .include_imports(true)
        .include_source_info(false)
        .open_files(public_protos()?)?
        .file_descriptor_set();
    std::fs::write(out.join("keyway.v1.bin"), public.encode_to_vec())?;
    tonic_prost_build::configure()
        .extern_path(".google.rpc", "::tonic_types::pb")
        .generate_default_stubs(true)
        .compile_fds(public)?;
    Ok(())
}

/// Every file of the public contract, sorted, so that the descriptor set does not depend on the file system.
fn public_protos() -> std::io::Result<Vec<String>> {
    let mut files = Vec::new();
    for folder in ["keyway/v1", "google/rpc"] {
        for entry in std::fs::read_dir(Path::new("proto").join(folder))? {
            let name = entry?.file_name().into_string().expect("file names here are plain");
            files.push(format!("{folder}/{name}"));
        }
    }
    files.sort();
    Ok(files)
}
