//! What is done with keys beside the main job: dry runs, checksums, from one key to another, and many things over one stream.

mod checksums;
mod dry_run;
mod pipeline;
mod re_encrypt;
