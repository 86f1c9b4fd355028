mod dev;
mod serve;
use clap::Parser;
#[derive(Parser)]
enum C {
    Dev(DevArgs),
    Serve {
        #[arg(long)]
        config: std::path::PathBuf,
    },
}
#[derive(clap::Args)]
pub struct DevArgs {
    #[arg(long, default_value = "127.0.0.1:50051")]
    pub grpc_addr: Listen,
    #[arg(long, default_value_t = 3)]
    pub nodes: u8,
    #[arg(long, default_value_t = 3)]
    pub zones: u8,
    #[arg(long, default_value = "./keyway-dev")]
    pub data_dir: std::path::PathBuf,
    #[arg(long)]
    pub reset: bool,
    #[arg(long)]
    pub insecure: bool,
    #[arg(long, default_value_t = 2)]
    pub pool_size: u16,
}
#[derive(Clone, Copy)]
pub enum Listen {
    Off,
    At(std::net::SocketAddr),
}
impl std::str::FromStr for Listen {
    type Err = String;
    fn from_str(t: &str) -> Result<Self, String> {
        if t == "off" {
            Ok(Self::Off)
        } else {
            t.parse().map(Self::At).map_err(|_| "x".to_owned())
        }
    }
}
pub fn run() -> std::process::ExitCode {
    if std::env::args_os().nth(1).is_some_and(|f| f == "worker") {
        return crate::worker::run();
    }
    match C::parse() {
        C::Dev(d) => dev::run(d),
        C::Serve { config } => serve::run(&config),
    }
}
