//! What the process itself uses, under the names that every Prometheus client gives it.
//!
//! What the kernel does not tell is left out.

use procfs::process::{LimitValue, Process};
use procfs::{ProcResult, page_size, ticks_per_second};

use super::catalogue::{
    BUILD, PROCESS_ADDRESSES, PROCESS_CPU, PROCESS_FILES, PROCESS_FILES_LIMIT, PROCESS_MEMORY, PROCESS_START,
    PROCESS_THREADS,
};
use super::page::Page;

/// Puts the process and its build on the page.
pub fn tell(page: &mut Page) {
    page.level(&BUILD, [env!("CARGO_PKG_VERSION"), option_env!("KEYWAY_COMMIT").unwrap_or_default()], 1.0);
    // Files of the kernel's own, which are there without waiting.
    if let Err(error) = usage(page) {
        tracing::debug!(%error, "the kernel does not tell what this process uses");
    }
}

fn usage(page: &mut Page) -> ProcResult<()> {
    let process = Process::myself()?;
    let stat = process.stat()?;
    let ticks = ticks_per_second() as f64;
    page.seconds(&PROCESS_CPU, [], (stat.utime + stat.stime) as f64 / ticks);
    page.level(&PROCESS_MEMORY, [], (stat.rss * page_size()) as f64);
    page.level(&PROCESS_ADDRESSES, [], stat.vsize as f64);
    page.level(&PROCESS_THREADS, [], stat.num_threads as f64);
    page.level(&PROCESS_START, [], procfs::boot_time_secs()? as f64 + stat.starttime as f64 / ticks);
    page.level(&PROCESS_FILES, [], process.fd_count()? as f64);
    if let LimitValue::Value(limit) = process.limits()?.max_open_files.soft_limit {
        page.level(&PROCESS_FILES_LIMIT, [], limit as f64);
    }
    Ok(())
}
