//! The gateway as a process of its own; `pulsestream gateway` runs the same.

use std::process::ExitCode;

use pulsestream_shared::auth::Keyring;
use pulsestream_shared::process;

fn main() -> ExitCode {
    process::main(
        pulsestream_gateway::ROLE,
        |server| server.port,
        async |context| {
            let keyring = Keyring::open(&context).await?;
            pulsestream_gateway::build(context, keyring).await
        },
    )
}
