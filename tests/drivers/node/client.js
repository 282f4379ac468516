// node-postgres at work on an audited table: see ../README.md for what each client does and prints.
"use strict";

const { Client } = require("pg");

const [name] = process.argv.slice(2);

async function main() {
  const client = new Client({ application_name: name });
  await client.connect();
  // A named query is a prepared statement, parsed once a connection.
  const setContext = (user) => ({
    name: "set_context",
    text: `SELECT audit.set_context(user_id => $1, tenant_id => $2, request_id => $3, ip_address => $4, context => $5)`,
    values: [user, `${name}-tenant`, null, "203.0.113.7", { client: name, nested: ["ä", null, 1.5] }],
  });
  const insert = (key, owner) => ({
    name: "insert",
    text: "INSERT INTO account (key, owner, balance, meta) VALUES ($1, $2, $3, $4)",
    values: [key, owner, "10.50", { of: owner }],
  });

  for (let i = 1; i <= 8; i++) {
    await client.query("BEGIN");
    await client.query(setContext(`${name}-user-${i}`));
    await client.query(insert(`${name}-${i}`, `${name}-user-${i}`));
    await client.query({ name: "update", text: "UPDATE account SET balance = balance + $1 WHERE key = $2", values: [i, `${name}-${i}`] });
    await client.query("COMMIT");
  }

  await client.query("BEGIN");
  await client.query(setContext(`${name}-ghost`));
  let code = null;
  try {
    await client.query(insert(`${name}-1`, `${name}-ghost`));
  } catch (error) {
    code = error.code;
  }
  await client.query("ROLLBACK");

  await client.query(insert(`${name}-alone`, null));

  await client.query("BEGIN");
  await client.query(setContext(`${name}-user-9`));
  await client.query({
    name: "log_event",
    text: "SELECT audit.log_event($1, $2, $3, $4)",
    values: ["order.approved", "order", `${name}-9`, { amount: 100.25 }],
  });
  await client.query({ name: "failed", text: "SELECT audit.log_login_failed($1, $2)", values: [`${name}-otto`, "wrong password"] });
  await client.query("COMMIT");

  const read = await client.query({
    name: "read",
    text: `SELECT operation, action, resource_id, user_id, tenant_id, host(ip_address) AS ip_address, context, status, details,
                  changed_columns, new_row ->> 'balance' AS balance, new_row ->> 'owner' AS owner
             FROM audit.log WHERE application_name = $1 ORDER BY era, position, command, seq`,
    values: [name],
  });
  await client.end();
  console.log(JSON.stringify({ duplicate: code, events: read.rows }));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
