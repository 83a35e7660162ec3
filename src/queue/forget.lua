-- forget(age ms, limit, latest) -> n: dead letters older than that are gone for good. None once it is later
-- than `latest`: then the clock was set, and ages are nonsense.
local age, limit = assert(tonumber(ARGV[1])), assert(tonumber(ARGV[2]))
if now > assert(tonumber(ARGV[3])) then return 0 end
check_types()
-- What has no time of death that could be is kept, and so is what is no message.
local ids, looked_at = {}, 0
while #ids < limit and looked_at < 2 * limit do
  local found = redis.call('ZRANGEBYSCORE', DEAD, FIRST_TIME, now - age, 'LIMIT', looked_at, limit - #ids)
  for _, id in ipairs(found) do if is_id(id) then ids[#ids + 1] = id end end
  looked_at = looked_at + #found
  if #found == 0 then break end
end
all('ZREM', DEAD, ids)
all('HDEL', MESSAGES, ids)
all('HDEL', HISTORY, ids)
all('HDEL', RECOVERED, ids)
return #ids
