-- expire(origin, age ms, reason, limit) -> n: buries what waits for a lane and was first put off longer ago than that.
local origin, age, reason, limit = ARGV[1], assert(tonumber(ARGV[2])), ARGV[3], assert(tonumber(ARGV[4]))
check_types()
open_for_writing()
local n = 0
for _, waiting in ipairs(waiting_of(origin, 0, limit)) do
  local id = string.sub(waiting, -16)
  local history = redis.call('HGET', HISTORY, id)
  local first = first_put_off(history)
  if not first or now - first < age then break end
  local attempts, own = string.match(history, '^(%d+) (%d+) ')
  redis.call('ZADD', DEAD, now, id)
  put_off(id, history, attempts, own, reason)
  redis.call('ZREM', WAITING, waiting)
  n = n + 1
end
close_if_empty(origin)
return n
