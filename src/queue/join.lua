-- join(lease ms) -> number: registers a new agent.
local lease = assert(tonumber(ARGV[1]))
check_types()
open_for_writing()
local number = sixteen(next_numbers(1) + 1)
redis.call('ZADD', AGENTS, now + lease, number)
return number
