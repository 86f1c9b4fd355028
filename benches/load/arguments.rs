//! The command line: what is measured for how long, and the hidden roles of the bench's own children.

use std::path::PathBuf;

#[derive(clap::Parser)]
#[command(name = "load", about = "Measures keyway beside PKCS#11 alone and a bare gRPC echo")]
pub struct Arguments {
    #[command(subcommand)]
    pub role: Option<Role>,

    /// One round of one second: whether it works, not how fast it is
    #[arg(long)]
    pub quick: bool,

    /// Rounds, of which the median is told
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    pub rounds: u32,

    /// Seconds that each cell is measured in each round
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,

    /// How often a measurement is tried while other processes keep the machine busy
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub attempts: u32,

    /// Clients at once
    #[arg(long, value_delimiter = ',', default_value = "1,16,128", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub clients: Vec<u16>,

    /// HSM nodes of the development cluster
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=16))]
    pub nodes: u8,

    /// Sessions per node
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub pool_size: u16,

    /// Another keyway binary, measured in the same rounds: before and after a change
    #[arg(long, value_name = "PATH")]
    pub beside: Vec<PathBuf>,

    /// The PKCS#11 library of SoftHSM2, when it is not where distributions keep it
    #[arg(long, value_name = "PATH")]
    pub softhsm2: Option<PathBuf>,

    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// What a child of the bench is for.
#[derive(clap::Subcommand)]
pub enum Role {
    #[command(hide = true)]
    Echo { unix_socket: PathBuf },
    #[command(hide = true)]
    Pkcs11 { module: PathBuf },
}
